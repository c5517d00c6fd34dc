"""The one rule that turns scores into a mask."""

from __future__ import annotations

from decimal import Decimal

import torch

from mft_ray.masking.settings import check_ratio


def removed_count(size: int, ratio: float) -> int:
    """Return floor(ratio * size), in decimal: 0.29 of 100 is 29, as a person reads it.

    Args:
        size: number of weights.
        ratio: masking ratio.
    """
    return int(Decimal(repr(float(check_ratio(ratio)))) * size)


@torch.no_grad()
def keep_mask(scores: torch.Tensor, ratio: float) -> torch.Tensor:
    """Keep all but the floor(ratio * n) entries with the smallest |scores|, ties to the lower flat index.

    The count is exact, and needs one selection rather than a sort.

    Args:
        scores: float tensor of any shape.
        ratio: masking ratio.

    Returns:
        A bool tensor of the same shape: True keeps a weight.

    Raises:
        UserError: the ratio is outside [0, 1).
        FloatingPointError: a score is NaN, so training has diverged and no ranking means anything.
    """
    magnitude = scores.detach().abs().flatten()
    count = removed_count(magnitude.numel(), ratio)
    if count == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    if magnitude.isnan().any():
        raise FloatingPointError("mask scores have become NaN; a lower learning rate may help")
    threshold = magnitude.kthvalue(count).values
    keep = magnitude >= threshold
    # Entries at the threshold: remove the first ones, in flat order, until the count is met.
    short = count - int(magnitude.numel() - keep.sum())
    tied = (magnitude == threshold).nonzero().flatten()
    keep[tied[:short]] = False
    return keep.view(scores.shape)
