"""The Optuna study of a run: at hand while a search works on it, and as a file in the run folder for everybody else."""
