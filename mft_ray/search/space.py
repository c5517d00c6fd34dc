"""What the search may choose from, as Optuna distributions, and the points that are always tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from mft_ray.config import Config, FloatRange
from mft_ray.domains import DOMAINS, Domain
from mft_ray.errors import UserError
from mft_ray.masking import parse_layers, parse_pattern
from mft_ray.training.recipes import MASKED

# The reference protocol: arXiv 2503.22764, section on implementation.
PAPER: dict[str, Any] = {"ratio": 0.1, "lr": 2e-5, "target": "both", "init": "normal", "schedule": "constant"}
# Its best layer group for math, coding and instruction following, at 32 layers.
PAPER_LAYERS = tuple(domain.layers for domain in DOMAINS.values())
# Of the trials at most one in so many goes to the paper's further groups: they are prior knowledge, not the search.
_PAPER_SHARE = 8


def build_space(config: Config, depth: int) -> dict[str, BaseDistribution]:
    """Return the distribution of every searched knob, wide enough to hold the points always tried.

    Args:
        config: ``search.method`` and ``search.space`` are used.
        depth: decoder layers of the backbone.

    Raises:
        UserError: a layer group lies outside the model.
    """
    space = config.search.space
    groups = layer_groups(depth) if space.layers == "auto" else list(space.layers)
    for group in groups:
        check_group(group, depth)
    points, fixed = points_to_evaluate(config, depth), _fixed_ratio(config)
    knobs = {name: getattr(space, name) for name in points[0]}
    if "layers" in knobs:
        knobs["layers"] = groups
    if fixed is not None:
        knobs["ratio"] = [fixed]
    return {name: _distribution(knob, [point[name] for point in points]) for name, knob in knobs.items()}


def points_to_evaluate(config: Config, depth: int) -> list[dict[str, Any]]:
    """Return the configurations tried first: the preset, the user's, then a mask's in the paper's further layer groups.

    Raises:
        UserError: a point of the user's has an unknown knob or a value that no mask can have.
    """
    preset = _preset(config, depth)
    points = [preset]
    for point in config.search.extra_points:
        unknown = sorted(point.keys() - preset.keys())
        if unknown:
            raise UserError(
                f"search.extra_points has the unknown knob {', '.join(unknown)}; known: {', '.join(sorted(preset))}."
            )
        for knob in {"ratio", "lr"} & preset.keys():
            _check_number(knob, point.get(knob, preset[knob]))
        points.append({**preset, **point})
        if "layers" in preset:
            points[-1]["layers"] = str(points[-1]["layers"])  # a layer group such as 4 is a number to YAML
            check_group(points[-1]["layers"], depth)
        apply(config, points[-1])
    further = config.search.trials // _PAPER_SHARE - 1 if config.search.method in MASKED else 0
    return points + [
        {**preset, "layers": group} for group in paper_layers(depth, config.data.domain)[1:][: max(further, 0)]
    ]


def _preset(config: Config, depth: int) -> dict[str, Any]:
    """Return the first configuration, with every knob that the method has: the paper's, where it has one."""
    method, fft = config.search.method, config.fft
    if method == "lora":
        lr = config.lora.lr or config.train.lr
        return {"rank": config.lora.rank, "layers": f"0-{depth - 1}", "target": "both", "lr": lr}
    if method in ("fft", "continued_fft"):
        lr = fft.continued_lr or fft.train.lr if method == "continued_fft" else fft.train.lr
        return {"lr": lr, "weight_decay": fft.train.weight_decay, "dropout": fft.train.dropout}
    fixed = _fixed_ratio(config)
    preset = {
        **PAPER,
        "ratio": PAPER["ratio"] if fixed is None else fixed,
        "layers": paper_layers(depth, config.data.domain)[0],
    }
    # What else a learned mask could choose is what makes another method of it.
    return preset if method == "mft" else {knob: preset[knob] for knob in ("ratio", "layers", "target")}


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


def apply(config: Config, point: dict[str, Any]) -> Config:
    """Return the configuration with what the search chose for one trial.

    Raises:
        UserError: no mask can be so.
    """
    knobs = dict(point)
    method = config.search.method
    if method == "lora":
        return config.model_copy(update={"lora": config.lora.model_copy(update=knobs)})
    if method in ("fft", "continued_fft"):
        fft = config.fft.model_copy(update={"train": config.fft.train.model_copy(update=knobs), "continued_lr": None})
        return config.model_copy(update={"fft": fft})
    train = config.train.model_copy(update={"lr": knobs.pop("lr", config.train.lr)})
    return config.model_copy(update={"mask": replace(config.mask, **knobs), "train": train})


def _fixed_ratio(config: Config) -> float | None:
    """Return the only ratio that an N:M pattern allows; None where the search chooses, or there is none.

    Raises:
        UserError: the masks have no ratio.
    """
    mask = config.mask
    if config.search.method not in MASKED:
        return None
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
