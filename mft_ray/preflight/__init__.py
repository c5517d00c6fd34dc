"""Before a run: what a machine or cluster has, and a first configuration for a model and data."""
