"""What can be done to a model, by name: fine-tune it, learn a mask, or cut one without learning."""

from __future__ import annotations

from dataclasses import replace

from mft_ray.config import TrainConfig
from mft_ray.masking import Init, MaskSettings

# Masks that are cut once, by scores that are not trained: what a learned one has to beat.
ONE_SHOT: dict[str, Init] = {"random_mask": "normal", "l1_mask": "magnitude", "wanda_mask": "wanda"}
METHODS = ("fft", "mft", *ONE_SHOT)


def cut_once(method: str, mask: MaskSettings, train: TrainConfig) -> tuple[MaskSettings, TrainConfig]:
    """Return the settings of a one-shot mask: where and how much as a learned one, scores as they start, no step.

    Args:
        method: one of `ONE_SHOT`: the smallest of random numbers go, of |W|, or of |W| times the norm of its input
            (Wanda, arXiv 2306.11695).
        mask: of the learned mask.
        train: of the learned mask.
    """
    settings = replace(mask, init=ONE_SHOT[method], schedule="constant", hardness="hard")
    return settings, train.model_copy(update={"steps": 0, "epochs": None})
