"""What of a run goes to the Hugging Face hub: a mask, an adapter or a model, with a card that says what it is worth."""
