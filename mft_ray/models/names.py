"""What the files and folders are called that a training or a search leaves."""

MASK = "mask.safetensors"
ADAPTER = "adapter"
MODEL = "best"  # a training's own model
BEST_MODEL = "model"  # in best/ of a search: the model with the mask in its weights
