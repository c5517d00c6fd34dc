"""The live page of a search: what its run folder says as it goes, and what a person asks of it."""
