"""Sub-commands that train, score, look into or hand on one model."""
