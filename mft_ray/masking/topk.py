"""The one rule that turns scores into a mask: exact, over one tensor or several, without sorting them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal

import numpy as np
import torch

from mft_ray.masking.settings import check_ratio

# Entries looked at to guess where the threshold lies, and how far, in standard deviations of that guess,
# the bracket reaches to either side. A bracket that misses costs time and nothing else.
_SAMPLE = 2**12
_DEVIATIONS = 3.0


def removed_count(size: int, ratio: float) -> int:
    """Return floor(ratio * size), in decimal: 0.29 of 100 is 29, as a person reads it.

    Args:
        size: number of weights.
        ratio: masking ratio.
    """
    return int(Decimal(repr(float(check_ratio(ratio)))) * size)


def keep_mask(scores: torch.Tensor, ratio: float) -> torch.Tensor:
    """Keep all but the floor(ratio * n) entries with the smallest |scores|, ties to the lower flat index.

    Args:
        scores: float tensor of any shape.
        ratio: masking ratio.

    Returns:
        A bool tensor of the same shape: True keeps a weight.

    Raises:
        UserError: the ratio is outside [0, 1).
        FloatingPointError: a score is NaN, so training has diverged and no ranking means anything.
    """
    (keep,) = keep_largest([scores.detach().abs()], removed_count(scores.numel(), ratio))
    return keep


@torch.no_grad()
def keep_largest(values: Sequence[torch.Tensor], removed: int) -> list[torch.Tensor]:
    """Keep all but the ``removed`` smallest entries of several tensors, ranked together.

    Ties go to the lower index: the earlier tensor, and in it the lower flat index.

    Args:
        values: float tensors of any shapes.
        removed: how many entries are not kept, fewer than there are or as many.

    Returns:
        A bool tensor for each: True keeps an entry. False ``removed`` times in all.

    Raises:
        FloatingPointError: an entry is NaN.
    """
    flats = [value.flatten() for value in values]
    refuse_nan(flats)
    if removed == 0:
        return [torch.ones_like(value, dtype=torch.bool) for value in values]
    threshold = _kth_smallest(flats, removed)
    keeps = [flat > threshold for flat in flats]
    # Of the entries at the threshold the last ones stay, if any.
    short = sum(flat.numel() for flat in flats) - removed - sum(int(keep.count_nonzero()) for keep in keeps)
    for flat, keep in zip(reversed(flats), reversed(keeps), strict=True):
        if short == 0:
            break
        tied = (flat == threshold).nonzero().flatten()[-short:]
        keep[tied] = True
        short -= len(tied)
    return [keep.view(value.shape) for keep, value in zip(keeps, values, strict=True)]


def refuse_nan(scores: Sequence[torch.Tensor]) -> None:
    """Raise if there is a score that cannot be ranked.

    Raises:
        FloatingPointError: a score is NaN, so training has diverged.
    """
    # The extremes of what holds a NaN are NaN, and cheaper than asking entry by entry.
    if any(score.numel() and bool(score.aminmax().max.isnan()) for score in scores):
        raise FloatingPointError("mask scores have become NaN; a lower learning rate may help")


def _kth_smallest(flats: Sequence[torch.Tensor], k: int) -> float:
    """Return the k-th smallest entry, k from 1.

    Of one tensor on the CPU numpy finds it, in vector instructions. Elsewhere, after Floyd & Rivest (1975), an evenly
    spaced sample brackets it; the entries within the bracket, few, are all that is ranked, and copied.
    """
    if len(flats) == 1 and flats[0].is_cpu and flats[0].dtype in (torch.float32, torch.float64):
        return float(np.partition(flats[0].numpy(), k - 1)[k - 1])
    size = sum(flat.numel() for flat in flats)
    low, high = _bracket(flats, size, k)
    below = sum(int((flat < low).count_nonzero()) for flat in flats)
    inside = torch.cat([flat[(flat >= low) & (flat <= high)] for flat in flats])
    if not below < k <= below + inside.numel():
        inside, below = torch.cat(list(flats)), 0
    if inside.is_cuda:  # where kthvalue is one block of threads, and a sort all of them
        return float(inside.sort().values[k - below - 1])
    return float(inside.kthvalue(k - below).values)


def _bracket(flats: Sequence[torch.Tensor], size: int, k: int) -> tuple[float, float]:
    """Return two values between which the k-th smallest most probably lies, both included."""
    if size <= _SAMPLE:
        return -math.inf, math.inf
    stride = size // _SAMPLE
    # Odd, so that a power-of-two row length does not make the sample a few columns.
    sample = torch.cat([flat[:: stride | 1] for flat in flats]).sort().values
    quantile = k / size
    middle = quantile * (len(sample) - 1)
    reach = _DEVIATIONS * math.sqrt(len(sample) * quantile * (1 - quantile)) + 1
    low = float(sample[math.floor(middle - reach)]) if middle - reach > 0 else -math.inf
    high = float(sample[math.ceil(middle + reach)]) if middle + reach < len(sample) - 1 else math.inf
    return low, high
