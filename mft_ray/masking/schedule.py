"""The masking ratio over the course of training."""

from __future__ import annotations

from mft_ray.masking.settings import MaskSettings


def share_at(settings: MaskSettings, progress: float) -> float:
    """Return which share of the full masking ratio is in force, 0 to 1.

    ``anneal`` follows the cubic of Zhu & Gupta (arXiv 1710.01878): fast while there is much to spare,
    slow near the end. ``linear`` goes up evenly.

    Args:
        settings: ``schedule`` and ``anneal_fraction`` are used.
        progress: fraction of training done, 0 to 1.
    """
    if settings.schedule == "constant":
        return 1.0
    done = min(max(progress / settings.anneal_fraction, 0.0), 1.0)
    return done if settings.schedule == "linear" else 1.0 - (1.0 - done) ** 3


def full_ratio_reached(settings: MaskSettings, progress: float) -> bool:
    """Say whether the ratio is the final one: only then is a score the score of the mask asked for."""
    return settings.schedule == "constant" or progress >= settings.anneal_fraction


def temperature_at(settings: MaskSettings, progress: float) -> float:
    """Return the width of a soft mask's sigmoid, in units of a score: falls to 0 linearly.

    Args:
        settings: ``temperature`` and ``init_scale`` are used.
        progress: fraction of training done, 0 to 1.
    """
    return settings.temperature * settings.init_scale * (1.0 - min(max(progress, 0.0), 1.0))
