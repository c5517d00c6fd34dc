"""What a person looks at after a search; reads the run folder only, never the search itself."""
