"""One optimizer step: which examples, through which layers, to which loss, and what that costs."""
