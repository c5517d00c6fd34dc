"""What a run is: its folder, the records in it, its data and start model, scores of models, how it goes on."""
