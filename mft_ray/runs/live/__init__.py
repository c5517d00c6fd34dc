"""A run as it goes: what it looks like now, and what a person asks of it."""
