"""Mask Fine-Tuning on Ray: learn which weights of a fine-tuned LLM to switch off."""

__version__ = "0.1.0"
