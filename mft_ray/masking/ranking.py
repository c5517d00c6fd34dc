"""From scores to masks: what is ranked together, and which entries of it go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from mft_ray.masking.batched_topk import keep_each
from mft_ray.masking.selection import Weight
from mft_ray.masking.settings import MaskSettings, parse_pattern
from mft_ray.masking.topk import keep_largest, refuse_nan, removed_count


def ranked_together(weights: Sequence[Weight], settings: MaskSettings) -> list[list[Weight]]:
    """Split weights into the groups that are ranked as one.

    Args:
        weights: what is masked, in model order.
        settings: ``scope`` is used; weights of different ratios are never ranked together.
    """
    groups: dict[object, list[Weight]] = {}
    for weight in weights:
        whole = {"matrix": weight.name, "layer": weight.layer, "model": None}[settings.scope]
        groups.setdefault((whole, settings.ratios[weight.half]), []).append(weight)
    return list(groups.values())


def make_all_masks(
    groups: Sequence[Sequence[Weight]], scores: Mapping[str, torch.Tensor], settings: MaskSettings, share: float = 1.0
) -> list[list[torch.Tensor]]:
    """Return the masks of several groups.

    Of matrices that are ranked by themselves, a GPU makes masks with one wait for all of them.

    Args:
        groups: as `ranked_together` gave them.
        scores: fp32, of each weight's shape, by weight name.
        settings: ``rule``, ``threshold``, ``pattern`` and the ratios are used.
        share: share of the full ratio that the schedule has reached, 0 to 1.

    Returns:
        A bool tensor for each weight of each group: True keeps an entry.

    Raises:
        FloatingPointError: a score is NaN.
    """
    made = _made_at_once(groups, scores, settings, share)
    return [
        [made[group[0].name]] if group[0].name in made else make_masks(group, scores, settings, share)
        for group in groups
    ]


def _made_at_once(
    groups: Sequence[Sequence[Weight]], scores: Mapping[str, torch.Tensor], settings: MaskSettings, share: float
) -> dict[str, torch.Tensor]:
    """Return masks, by weight name, of what is ranked by itself on a GPU."""
    if settings.rule == "threshold" or settings.pattern is not None:
        return {}
    removed = {}
    for group in groups:
        score = scores[group[0].name]
        if len(group) == 1 and score.is_cuda and score.dtype == torch.float32:
            count = removed_count(score.numel(), settings.ratios[group[0].half] * share)
            if count:
                removed[group[0].name] = count
    if not removed:
        return {}
    keeps, right = keep_each([scores[name] for name in removed], list(removed.values()), settings.signed)
    return {name: keep for name, keep, fits in zip(removed, keeps, right.tolist(), strict=True) if fits}


@torch.no_grad()
def make_masks(
    group: Sequence[Weight], scores: Mapping[str, torch.Tensor], settings: MaskSettings, share: float = 1.0
) -> list[torch.Tensor]:
    """Return the masks of one group; arguments and errors as of `make_all_masks`."""
    if settings.rule == "threshold":
        signed = [scores[weight.name] for weight in group]
        refuse_nan(signed)
        return [score >= settings.threshold for score in signed]
    ranked = [scores[weight.name].detach() for weight in group]
    if not settings.signed:
        ranked = [score.abs() for score in ranked]
    if settings.pattern is not None:
        return _make_pattern(group, ranked, settings.pattern, share)
    size = sum(score.numel() for score in ranked)
    return keep_largest(ranked, removed_count(size, settings.ratios[group[0].half] * share))


def _make_pattern(
    group: Sequence[Weight], ranked: Sequence[torch.Tensor], pattern: str, share: float
) -> list[torch.Tensor]:
    """Remove a share of the entries that lose to the others of their M, the smallest first."""
    refuse_nan(ranked)
    loses = [_loses(score, weight, pattern) for score, weight in zip(ranked, group, strict=True)]
    losers = [score[lost] for score, lost in zip(ranked, loses, strict=True)]
    size = sum(loser.numel() for loser in losers)
    # The ratio plays no part: 0.6666666666 of 12 weights would be 7, and not every pattern full.
    kept = keep_largest(losers, size if share == 1 else removed_count(size, share))
    return [~lost.masked_scatter(lost, ~keep) for lost, keep in zip(loses, kept, strict=True)]


def _loses(score: torch.Tensor, weight: Weight, pattern: str) -> torch.Tensor:
    """Say which entries are not among the N largest of their M; ties go as everywhere, to the lower index."""
    kept, of = parse_pattern(pattern)
    rows = score.movedim(weight.input_dim, -1)
    order = rows.reshape(*rows.shape[:-1], rows.shape[-1] // of, of).argsort(dim=-1, stable=True)
    loses = torch.zeros_like(order, dtype=torch.bool).scatter_(-1, order[..., : of - kept], True)
    return loses.flatten(-2).movedim(-1, weight.input_dim)
