"""Sub-commands that come before a run."""
