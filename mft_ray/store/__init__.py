"""A run folder in an object store: where it is, its copy on this machine, and what is carried between the two."""
