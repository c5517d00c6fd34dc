"""The rule of `mft_ray.masking.topk` over many matrices, each ranked by itself, with one wait for a GPU in all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mft_ray.masking.kernels import Kernel

# Entries looked at to guess where a threshold lies; how far, in standard deviations of that guess, the bracket reaches
# to either side; and how many more entries than expected may lie within.
_SAMPLE = 2**15
_DEVIATIONS = 3.0
_SLACK = 1.25
# Two counts are one sum: that of what lies above is in the upper bits.
_ABOVE = 2**32


@torch.no_grad()
def keep_each(scores: Sequence[Tensor], removed: Sequence[int], signed: bool = False) -> tuple[list[Tensor], Tensor]:
    """Keep of each tensor all but as many of its smallest entries as are to be removed, ties to the lower flat index.

    Nothing here waits for the device, so that the answer may be wrong: where many more entries than expected lie near
    a threshold, or one is NaN.

    Args:
        scores: floats, of any shapes, on one device.
        removed: how many entries of each are not kept, at least one and fewer than there are.
        signed: whether scores are ranked as they are, not by their size.

    Returns:
        A bool tensor for each, True keeps an entry; and whether each is right, bool, on the device.
    """
    flats = [score.detach().flatten() for score in scores]
    brackets = _brackets(flats, removed, signed)
    width = max(bracket.room for bracket in brackets)
    keeps, places, near, beside = [], [], [], []
    for flat, bracket in zip(flats, brackets, strict=True):
        keep, inside, counted = _split(flat, bracket.low, bracket.high, signed)
        at = torch.nonzero_static(inside, size=width, fill_value=-1).flatten()
        keeps.append(keep)
        places.append(at)
        value = flat[at].float()  # at -1 whatever is there
        near.append(value if signed else value.abs())
        beside.append(counted)
    at, values = torch.stack(places), torch.stack(near)
    outside = torch.stack(beside)
    below, above = outside % _ABOVE, outside // _ABOVE
    sizes = _whole([flat.numel() for flat in flats], at.device)
    gone = _whole(removed, at.device)
    there = at >= 0
    within = there.sum(1)
    values = values.masked_fill(~there, math.inf)
    kept = _kept_within(values, there, gone - below, sizes - gone - above)
    # Where there is no entry, the first one is written once more, as it is.
    at, kept = torch.where(there, at, at[:, :1]), torch.where(there, kept, kept[:, :1])
    for keep, index, value in zip(keeps, at, kept, strict=True):
        keep.scatter_(0, index.clamp_min(0), value)
    # An entry that there is no room for, or that is no number, is missing.
    right = (below < gone) & (gone <= below + within) & (below + within + above == sizes)
    return [keep.view(score.shape) for keep, score in zip(keeps, scores, strict=True)], right


class _Bracket(NamedTuple):
    """Two values between which a threshold most probably lies, and how many entries there is room for in between."""

    low: Tensor
    high: Tensor
    room: int


def _brackets(flats: Sequence[Tensor], removed: Sequence[int], signed: bool) -> list[_Bracket]:
    """Bracket each threshold by an evenly spaced sample of its tensor (Floyd & Rivest, 1975)."""
    # An odd stride, so that a power-of-two row length does not make the sample a few columns.
    drawn = [flat[:: (flat.numel() // _SAMPLE) | 1] for flat in flats]
    padded = torch.full((len(drawn), max(map(len, drawn))), math.inf, device=flats[0].device)
    for row, sample in zip(padded, drawn, strict=True):
        row[: len(sample)] = sample if signed else sample.abs()
    lows, highs = torch.full_like(padded[:, :1], -math.inf), torch.full_like(padded[:, :1], math.inf)
    # Beyond its ends a sample says nothing.
    ordered = torch.cat([lows, padded.sort(1).values, highs], 1)
    brackets = []
    for row, flat, sample, gone in zip(ordered, flats, drawn, removed, strict=True):
        size, count = flat.numel(), len(sample)
        quantile = gone / size
        middle = quantile * (count - 1)
        reach = _DEVIATIONS * math.sqrt(count * quantile * (1 - quantile)) + 1
        first, last = math.floor(middle - reach), math.ceil(middle + reach)
        low, high = row[max(first, -1) + 1], row[(last if last < count else count) + 1]
        if count < size:
            share = (min(last, count) - max(first, -1)) / count
            room = min(size, math.ceil(_SLACK * share * size) + 1)
        else:
            room = size
        brackets.append(_Bracket(low, high, room))
    return brackets


@Kernel
def _split(flat: Tensor, low: Tensor, high: Tensor, signed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return which entries lie above a bracket, which within, and how many below, plus _ABOVE times how many above."""
    ranked = flat if signed else flat.abs()
    above, inside = ranked > high, (ranked >= low) & (ranked <= high)
    return above, inside, torch.where(ranked < low, 1, torch.where(above, _ABOVE, 0)).sum()


def _kept_within(values: Tensor, there: Tensor, removed: Tensor, kept: Tensor) -> Tensor:
    """Say which entries within the brackets stay.

    Args:
        values: shape (G, N): a row for each tensor, in its order.
        there: bool, which of them are entries.
        removed: shape (G,): how many go.
        kept: shape (G,): how many stay.
    """
    threshold = _kth_smallest(values, removed)[:, None]
    stays = (values > threshold) & there
    tied = (values == threshold) & there
    # Of the entries at the threshold the last ones stay, if any.
    short = (kept - stays.sum(1))[:, None]
    after = tied.flip(1).cumsum(1, dtype=torch.int32).flip(1)
    return stays | (tied & (after <= short))


@Kernel
def _kth_smallest(values: Tensor, k: Tensor) -> Tensor:
    """Return the k-th smallest of each row, k from 1, by halving what its bits, read as an integer, can be."""
    bits = values.view(torch.int32)
    keys = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # integers in the order of the floats
    low = torch.full_like(k, -(2**31))
    high = torch.full_like(k, 2**31 - 1)
    for _ in range(32):
        middle = (low + high) >> 1
        enough = (keys <= middle[:, None]).sum(1) >= k
        high = torch.where(enough, middle, high)
        low = torch.where(enough, low, middle + 1)
    found = low.to(torch.int32)
    return torch.where(found < 0, found ^ 0x7FFFFFFF, found).view(torch.float32)


def _whole(numbers: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(numbers, device="cpu").to(device, non_blocking=True)
