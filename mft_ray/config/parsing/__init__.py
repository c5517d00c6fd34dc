"""How a configuration is read: YAML, settings by path, and what is said of a wrong one."""
