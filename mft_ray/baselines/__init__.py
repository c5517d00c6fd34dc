"""What a search is held against: FFT, FFT continued, and other methods."""
