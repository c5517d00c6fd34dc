"""Rows as they were written: file formats, values as text, messages of a conversation."""
