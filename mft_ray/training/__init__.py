"""One training loop for FFT and masks: a DeepSpeed engine inside a Ray Train worker."""
