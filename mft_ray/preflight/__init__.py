"""Before a run: what a machine or cluster has, a first configuration for a model and data, and what a search takes."""
