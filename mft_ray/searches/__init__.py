"""The search: what it may choose, its trials, when they stop, what they leave behind."""
