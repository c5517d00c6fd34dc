"""All methods on one backbone, under one budget, in one table."""
