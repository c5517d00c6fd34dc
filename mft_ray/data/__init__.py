"""Examples to learn from and be judged on: where they come from, how they split, how they become tokens."""
