"""Tracking: a search shown in TensorBoard, Weights & Biases and MLflow, from the records of its run folder."""
