"""From scores to masks: what is ranked together, and which entries of it go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from mft_ray.masking.select import Weight
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


@torch.no_grad()
def make_masks(
    group: Sequence[Weight], scores: Mapping[str, torch.Tensor], settings: MaskSettings, share: float = 1.0
) -> list[torch.Tensor]:
    """Return the masks of one group.

    Args:
        group: as `ranked_together` gave it.
        scores: fp32, of each weight's shape, by weight name.
        settings: ``rule``, ``threshold``, ``pattern`` and the ratios are used.
        share: of the full ratio that the schedule has reached, 0 to 1.

    Returns:
        A bool tensor for each weight: True keeps an entry.

    Raises:
        FloatingPointError: a score is NaN.
    """
    if settings.rule == "threshold":
        signed = [scores[weight.name] for weight in group]
        refuse_nan(signed)
        return [score >= settings.threshold for score in signed]
    magnitudes = [scores[weight.name].detach().abs() for weight in group]
    size = sum(magnitude.numel() for magnitude in magnitudes)
    removed = removed_count(size, settings.ratios[group[0].half] * share)
    if settings.pattern is not None:
        refuse_nan(magnitudes)
        candidates = [_loses(*pair, settings.pattern) for pair in zip(magnitudes, group, strict=True)]
        removed = min(removed, sum(int(candidate.sum()) for candidate in candidates))
        # The others are out of reach.
        magnitudes = [m.masked_fill(~candidate, torch.inf) for m, candidate in zip(magnitudes, candidates, strict=True)]
    return keep_largest(magnitudes, removed)


def _loses(magnitude: torch.Tensor, weight: Weight, pattern: str) -> torch.Tensor:
    """Say which entries are not among the N largest of their M; ties go as everywhere, to the lower index."""
    kept, of = parse_pattern(pattern)
    rows = magnitude.movedim(weight.input_dim, -1)
    order = rows.reshape(*rows.shape[:-1], -1, of).argsort(dim=-1, stable=True)
    loses = torch.zeros_like(order, dtype=torch.bool).scatter_(-1, order[..., : of - kept], True)
    return loses.flatten(-2).movedim(-1, weight.input_dim)
