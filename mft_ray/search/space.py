"""What the search may choose from, as Optuna distributions, and the points that are always tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from mft_ray.config import Config, FloatRange
from mft_ray.domains import DOMAINS, Domain
from mft_ray.errors import UserError
from mft_ray.masking import MaskSettings, parse_layers, parse_pattern

# The reference protocol: arXiv 2503.22764, section on implementation.
PAPER = {"ratio": 0.1, "lr": 2e-5, "target": "both", "init": "normal", "schedule": "constant"}
# Its best layer group for math, coding and instruction following, at 32 layers.
PAPER_LAYERS = tuple(domain.layers for domain in DOMAINS.values())
# Of the trials at most one in so many goes to the paper's further groups: they are prior knowledge, not the search.
_PAPER_SHARE = 8


def build_space(config: Config, depth: int) -> dict[str, BaseDistribution]:
    """Return the distribution of every searched knob, wide enough to hold the points always tried.

    Args:
        config: ``search.space`` is used.
        depth: decoder layers of the backbone.

    Raises:
        UserError: a layer group lies outside the model.
    """
    space = config.search.space
    groups = layer_groups(depth) if space.layers == "auto" else list(space.layers)
    for group in groups:
        check_group(group, depth)
    points, fixed = points_to_evaluate(config, depth), _fixed_ratio(config.mask)
    knobs: dict[str, Any] = {
        "ratio": space.ratio if fixed is None else [fixed],
        "layers": groups,
        "lr": space.lr,
        "target": space.target,
        "init": space.init,
        "schedule": space.schedule,
    }
    return {name: _distribution(knob, [point[name] for point in points]) for name, knob in knobs.items()}


def points_to_evaluate(config: Config, depth: int) -> list[dict[str, Any]]:
    """Return the configurations tried first: the paper's preset, the user's, then the paper's further layer groups.

    Raises:
        UserError: a point of the user's has an unknown knob or a value that no mask can have.
    """
    groups = paper_layers(depth, config.data.domain)
    preset: dict[str, Any] = {**PAPER, "layers": groups[0]}
    if (fixed := _fixed_ratio(config.mask)) is not None:
        preset["ratio"] = fixed
    points = [preset]
    for point in config.search.extra_points:
        unknown = sorted(point.keys() - preset.keys())
        if unknown:
            raise UserError(
                f"search.extra_points has the unknown knob {', '.join(unknown)}; known: {', '.join(sorted(preset))}."
            )
        for knob in ("ratio", "lr"):
            _check_number(knob, point.get(knob, preset[knob]))
        points.append({**preset, **point})
        points[-1]["layers"] = str(points[-1]["layers"])  # a layer group such as 4 is a number to YAML
        check_group(points[-1]["layers"], depth)
        mask_settings(config.mask, points[-1])
    further = config.search.trials // _PAPER_SHARE - 1
    return points + [{**preset, "layers": group} for group in groups[1:][: max(further, 0)]]


def layer_groups(depth: int) -> list[str]:
    """Derive layer groups from the depth: eighths as in the paper, halves, and all.

    Args:
        depth: decoder layers; 32 gives 0-3, 4-7, ... 28-31, 0-15, 16-31, 0-31.
    """
    sizes = [max(1, depth // 8), max(1, depth // 2), depth]
    groups = [f"{first}-{min(first + size, depth) - 1}" for size in sizes for first in range(0, depth, size)]
    return list(dict.fromkeys(groups))


def paper_layers(depth: int, domain: Domain | None = None) -> list[str]:
    """Return the paper's best groups (math, coding, instruction following) that a model has.

    Where it has not even the first, 4-7, that is its deeper half.

    Args:
        depth: decoder layers.
        domain: whose group comes first.
    """
    if depth < 8:
        return [f"{depth // 2}-{depth - 1}"]
    groups = [group for group in PAPER_LAYERS if parse_layers(group)[-1] < depth]
    return sorted(groups, key=lambda group: domain is None or group != domain.layers)


def check_group(group: str, depth: int) -> None:
    """Refuse a layer group that the model lacks.

    Raises:
        UserError: naming the layers that there are.
    """
    if group != "all" and parse_layers(group)[-1] >= depth:
        raise UserError(
            f"The layer group {group} reaches beyond the model's {depth} decoder layers (0-{depth - 1}). "
            "Choose groups within them in search.space.layers or mask.layers."
        )


def mask_settings(base: MaskSettings, point: dict[str, Any]) -> MaskSettings:
    """Return the settings of one trial's mask: the config's, with what the search chose."""
    return replace(base, **{knob: value for knob, value in point.items() if knob != "lr"})


def _fixed_ratio(mask: MaskSettings) -> float | None:
    """Return the only ratio that an N:M pattern allows; None where the search chooses.

    Raises:
        UserError: the masks have no ratio.
    """
    if mask.rule == "threshold":
        raise UserError(
            "A search chooses masking ratios, and mask.rule threshold has none. Use rule ratio, or learn that mask "
            "with python -m mft_ray.train --method mft."
        )
    if mask.pattern is None:
        return None
    kept, of = parse_pattern(mask.pattern)
    return 1 - kept / of


def _check_number(knob: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or (knob == "lr" and not value > 0):
        raise UserError(
            f"search.extra_points has {knob} {value!r}; it must be a number{' above 0' if knob == 'lr' else ''}."
        )


def _distribution(knob: FloatRange | Sequence[Any], always: list[Any]) -> BaseDistribution:
    if isinstance(knob, FloatRange):
        return FloatDistribution(min(knob.low, *always), max(knob.high, *always), log=knob.log)
    return CategoricalDistribution(list(dict.fromkeys([*knob, *always])))
