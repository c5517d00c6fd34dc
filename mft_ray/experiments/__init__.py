"""The paper's experiments over seeds: what each compares, how it is run, collected and drawn."""
