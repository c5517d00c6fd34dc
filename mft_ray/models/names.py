"""What the files and folders are called that a training or a search leaves."""

from __future__ import annotations

from pathlib import Path

MASK = "mask.safetensors"
ADAPTER = "adapter"
MODEL = "best"  # a training's own model
BEST_MODEL = "model"  # in best/ of a search: the model with the mask in its weights
SCORES = "validation_scores.safetensors"  # of the state that is kept, one for each validation example
TRACEBACK = "traceback.txt"  # of a worker that failed, beside what its job was to leave


def find(folder: Path) -> Path | None:
    """Return what a training has left in its folder: mask, adapter or model; None if there is none yet.

    Args:
        folder: folder of the training.
    """
    return next((path for name in (MASK, ADAPTER, MODEL) if (path := folder / name).exists()), None)
