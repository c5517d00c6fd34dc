"""Sub-commands that begin, watch, steer or show a run."""
