"""The ground floor: what every part may use, and what imports nothing of ours."""
