"""Damaged files of a run: found, set aside and made again, or refused by name."""
