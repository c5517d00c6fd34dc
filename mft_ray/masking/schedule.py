"""The masking ratio over the course of training."""

from __future__ import annotations

from mft_ray.masking.settings import MaskSettings


def ratio_at(settings: MaskSettings, progress: float) -> float:
    """Return the masking ratio in force.

    ``anneal`` follows the cubic of Zhu & Gupta (arXiv 1710.01878): fast while there is much to spare,
    slow near the end.

    Args:
        settings: ``ratio``, ``schedule`` and ``anneal_fraction`` are used.
        progress: fraction of training done, 0 to 1.
    """
    if settings.schedule == "constant":
        return settings.ratio
    done = min(max(progress / settings.anneal_fraction, 0.0), 1.0)
    return settings.ratio * (1.0 - (1.0 - done) ** 3)


def full_ratio_reached(settings: MaskSettings, progress: float) -> bool:
    """Say whether the ratio is the final one: only then is a score the score of the mask asked for."""
    return settings.schedule == "constant" or progress >= settings.anneal_fraction
