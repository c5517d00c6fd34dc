"""What the search may choose from, as Optuna distributions, and the points that are tried first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any, get_args

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from mft_ray.config import METHODS, Config, FloatRange, SettingRange, setting_type
from mft_ray.config.params import Params, apply
from mft_ray.domains import DOMAINS, Domain
from mft_ray.errors import UserError
from mft_ray.masking import parse_layers, parse_pattern

# The reference protocol: arXiv 2503.22764, section on implementation.
PAPER: Params = {"ratio": 0.1, "lr": 2e-5, "target": "both", "init": "normal", "schedule": "constant"}
# Its best layer group for math, coding and instruction following, at 32 layers.
PAPER_LAYERS = tuple(domain.layers for domain in DOMAINS.values())
# Of the trials at most one in so many goes to the paper's further groups: they are prior knowledge, not the search.
_PAPER_SHARE = 8
# What a mask without a ratio has no use for.
_OF_RATIOS = ("ratio", "schedule")


def build_space(config: Config, depth: int) -> dict[str, BaseDistribution]:
    """Return the distribution of every searched setting: what ``search.space`` says and nothing outside it.

    Args:
        config: ``search.method`` and ``search.space`` are used.
        depth: decoder layers of the backbone.

    Raises:
        UserError: a layer group lies outside the model, or the masks have no ratio to search.
    """
    space = config.search.space
    derived = dict.fromkeys([*layer_groups(depth), *paper_layers(depth)])
    groups = list(derived) if space.layers == "auto" else list(space.layers)
    for group in groups:
        check_group(group, depth)
    ratio = _fixed_ratio(config)
    parameters: dict[str, FloatRange | Sequence[Any]] = {name: getattr(space, name) for name in _short(config)}
    if "layers" in parameters:
        parameters["layers"] = groups
    if ratio is not None:
        parameters["ratio"] = [ratio]
    return {name: _distribution(name, parameter) for name, parameter in (parameters | space.paths).items()}


def points_to_evaluate(config: Config, depth: int) -> list[Params]:
    """Return the configurations tried first, each once and all in the space.

    They are `first_point`, the user's, then, for masks, the first one in the paper's further layer groups.

    Raises:
        UserError: a point of the user's has an unknown setting, or a value that no mask can have or the space has not.
    """
    space, first = build_space(config, depth), first_point(config, depth)
    given = config.search.extra_points
    points = [first, *(_whole(config, point, first, space, depth, "search.extra_points has") for point in given)]
    further = config.search.trials // _PAPER_SHARE - 1 if METHODS[config.search.method].masks else 0
    groups = [group for group in paper_layers(depth, config.data.domain)[1:] if _holds(space.get("layers"), group)]
    points += [{**first, "layers": group} for group in groups[: max(further, 0)]]
    return [point for place, point in enumerate(points) if point not in points[:place]]


def first_point(config: Config, depth: int) -> Params:
    """Return the method's preset, the paper's where it has one, or the point of the space that is nearest to it."""
    preset, space = _preset(config, depth), build_space(config, depth)
    return {name: _nearest(preset[name], distribution) for name, distribution in space.items()}


def whole_point(config: Config, point: Params, depth: int) -> Params:
    """Return a person's configuration with every searched setting; what it leaves open is `first_point`'s.

    Args:
        config: configuration of the search.
        point: value by short name or path.
        depth: decoder layers of the backbone.

    Raises:
        UserError: an unknown setting, or a value that it cannot have or the space has not.
    """
    return _whole(config, point, first_point(config, depth), build_space(config, depth), depth, "You ask for")


def left_out(config: Config, depth: int) -> str | None:
    """Say what of the preset the space does not hold, and what is tried first instead; None if it holds all."""
    preset, first = _preset(config, depth), first_point(config, depth)
    other = [f"{name} {first[name]} instead of {preset[name]}" for name in first if first[name] != preset[name]]
    if not other:
        return None
    whose = "the paper's preset" if METHODS[config.search.method].masks else "the configured setting"
    return f"{whose} lies outside search.space; tried first is what is nearest to it: {', '.join(other)}"


def what_may_be_chosen(config: Config, depth: int) -> Iterator[Config]:
    """Yield what every value, and every two together, make of the first point: to be refused before a trial is.

    Args:
        config: configuration of the search.
        depth: decoder layers of the backbone.

    Raises:
        UserError: a value is not allowed for its setting, or not beside another one.
    """
    first = first_point(config, depth)
    yield _chosen(config, first, "what is tried first")
    ends = {name: _ends(distribution) for name, distribution in build_space(config, depth).items()}
    single = [(name, value) for name, values in ends.items() for value in values if value != first[name]]
    for name, value in single:
        yield _chosen(config, {**first, name: value}, f"search.space.{name} with {value}")
    for (one, value), (other, second) in combinations(single, 2):
        if one != other:
            where = f"search.space.{one} with {value} beside search.space.{other} with {second}"
            yield _chosen(config, {**first, one: value, other: second}, where)


def _chosen(config: Config, point: Params, where: str) -> Config:
    try:
        return apply(config, point)
    except UserError as error:
        raise UserError(f"{where} cannot be: {error}") from None


def _short(config: Config) -> dict[str, str]:
    """Return the settings that are searched under a short name: path by name."""
    names = dict(METHODS[config.search.method].short_names)
    if config.mask.rule == "threshold" and METHODS[config.search.method].masks:
        return {name: path for name, path in names.items() if name not in _OF_RATIOS}
    return names


def _preset(config: Config, depth: int) -> Params:
    """Return the method's own configuration: the paper's, where it has one."""
    preset = {path: _get(config, path) for path in config.search.space.paths}
    if (own := METHODS[config.search.method].preset) is not None:
        return {**preset, **own(config, depth)}
    fixed = _fixed_ratio(config)
    ratio = PAPER["ratio"] if fixed is None else fixed
    return {**preset, **PAPER, "ratio": ratio, "layers": paper_layers(depth, config.data.domain)[0]}


def _get(config: Config, path: str) -> Any:
    value: Any = config
    for part in path.split("."):
        value = getattr(value, part)
    return value


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


def _fixed_ratio(config: Config) -> float | None:
    """Return the only ratio that an N:M pattern allows; None where the search chooses, or there is none.

    Raises:
        UserError: the masks have no ratio, and nothing else to search in its place.
    """
    mask = config.mask
    if not METHODS[config.search.method].masks:
        return None
    if mask.rule == "threshold" and "mask.threshold" not in config.search.space.paths:
        raise UserError(
            "A search chooses masking ratios, and mask.rule threshold has none. Use rule ratio, give "
            "search.space.mask.threshold a range, or learn that mask with mft-ray train --method mft."
        )
    if mask.rule == "threshold" or mask.pattern is None:
        return None
    kept, of = parse_pattern(mask.pattern)
    return 1 - kept / of


def _whole(
    config: Config, point: Params, first: Params, space: dict[str, BaseDistribution], depth: int, whose: str
) -> Params:
    """Return a point of the user's with every setting that the space has; what it leaves open is the first point's."""
    names = {path: name for name, path in _short(config).items()}
    given = {names.get(name, name): value for name, value in point.items()}
    if unknown := sorted(given.keys() - first.keys()):
        raise UserError(f"{whose} the unknown parameter {', '.join(unknown)}; known: {', '.join(sorted(first))}.")
    for parameter in {"ratio", "lr"} & given.keys():
        _check_number(parameter, given[parameter], whose)
    if "layers" in given:
        given["layers"] = str(given["layers"])  # a layer group such as 4 is a number to YAML
        check_group(given["layers"], depth)
    whole = {**first, **given}
    apply(config, whole)
    for parameter, value in given.items():
        if not _holds(space[parameter], value):
            raise UserError(
                f"{whose} {parameter} {value}, which lies outside search.space.{parameter} "
                f"({_described(space[parameter])}). Widen the space or leave the point out."
            )
    return whole


def _check_number(name: str, value: Any, whose: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or (name == "lr" and not value > 0):
        raise UserError(f"{whose} {name} {value!r}; it must be a number{' above 0' if name == 'lr' else ''}.")


def _distribution(name: str, given: FloatRange | Sequence[Any]) -> BaseDistribution:
    if not isinstance(given, FloatRange):
        # By type as well: 1 and true are not the same.
        return CategoricalDistribution(list({(type(value), value): value for value in given}.values()))
    step = given.step if isinstance(given, SettingRange) else None
    kind = setting_type(Config, name) if "." in name else float
    if float in (kind, *get_args(kind)):
        return FloatDistribution(given.low, given.high, log=given.log, step=step)
    numbers = (given.low, given.high, step or 1)
    if any(number != int(number) for number in numbers):
        raise UserError(f"search.space.{name} is a range of {given.low:g} to {given.high:g}; {name} is a whole number.")
    low, high, each = map(int, numbers)
    return IntDistribution(low, high, log=given.log, step=each)


def _nearest(value: Any, distribution: BaseDistribution) -> Any:
    if _holds(distribution, value):
        return value
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if value is None:
        return distribution.low
    inside = min(max(value, distribution.low), distribution.high)
    if distribution.step:
        inside = distribution.low + round((inside - distribution.low) / distribution.step) * distribution.step
    return type(distribution.low)(inside)


def _holds(distribution: BaseDistribution | None, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return any(
            value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in distribution.choices
        )
    if distribution is None or isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return bool(distribution._contains(distribution.to_internal_repr(value)))


def _ends(distribution: BaseDistribution) -> tuple[Any, ...]:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return distribution.low, distribution.high


def _described(distribution: BaseDistribution) -> str:
    ends = _ends(distribution)
    return ", ".join(map(str, ends)) if isinstance(distribution, CategoricalDistribution) else f"{ends[0]} to {ends[1]}"
