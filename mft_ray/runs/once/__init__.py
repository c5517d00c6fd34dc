"""One training, or one scoring, without a search."""
