"""What each experiment compares (arXiv 2503.22764, figures 2 to 5 and tables)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any

from mft_ray.config import METHODS, Config
from mft_ray.domains import DOMAINS
from mft_ray.errors import UserError

Changes = dict[str, Any]
FFT, CONTINUED, MFT = "fft", "continued_fft", "mft"


@dataclass(frozen=True)
class Panel:
    """One comparison of an experiment.

    Attributes:
        name: name of its folder.
        rows: same as in ``compare.methods``.
        changes: by section, what it changes of the configuration for FFT and all rows alike.
        x: where each row stands on the figure's axis; empty where its name is its place.
        judged_on: other panels on whose test examples its rows are judged too.
    """

    name: str
    rows: dict[str, Changes]
    changes: dict[str, Changes] = field(default_factory=dict)
    x: dict[str, float] = field(default_factory=dict)
    judged_on: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One comparison of an experiment: a panel with one seed.

    Attributes:
        seed: added to the configuration's own.
        panel: what is compared.
        config: configuration of the comparison.
        folder: folder of its run.
    """

    seed: int
    panel: Panel
    config: Config
    folder: Path


@dataclass(frozen=True)
class Experiment:
    """An experiment of the paper.

    Attributes:
        question: that it answers.
        axis: what is varied, as the figure's axis says it.
        panels: its comparisons, from the configuration and the number of decoder layers.
    """

    question: str
    axis: str
    panels: Callable[[Config, int], list[Panel]]


def _methods(config: Config, names: tuple[str, ...]) -> dict[str, Changes]:
    """Return rows by method, each with what the configuration's comparison says of it."""
    return {name: dict(config.compare.methods.get(name, {})) for name in names}


def _masks(config: Config, cells: dict[str, Changes]) -> dict[str, Changes]:
    """Return rows that learn a mask, each with changes of its own over what the comparison says of ``mft``."""
    base = config.compare.methods.get(MFT, {})
    return {
        name: {**base, "method": MFT, "mask": {**base.get("mask", {}), **changes}} for name, changes in cells.items()
    }


def _one(rows: dict[str, Changes], **more: Any) -> list[Panel]:
    return [Panel("all", rows, **more)]


def _curves(config: Config, depth: int) -> list[Panel]:
    return _one(_methods(config, (CONTINUED, "lora", "random_mask", "l1_mask", MFT)))


def _cost(config: Config, depth: int) -> list[Panel]:
    return _one(_methods(config, tuple(name for name in METHODS if name != FFT)))


def _ratio(config: Config, depth: int) -> list[Panel]:
    ratios = config.experiment.ratios
    cells = {f"ratio {ratio:g}": {"ratio": ratio} for ratio in ratios}
    return _one(_masks(config, cells), x=dict(zip(cells, ratios, strict=True)))


def groups(size: int, depth: int) -> list[str]:
    """Return the layer groups of one size, shallow to deep; the last may be smaller."""
    return [f"{first}-{min(first + size, depth) - 1}" for first in range(0, depth, size)]


def _layers(config: Config, depth: int) -> list[Panel]:
    sizes = config.experiment.group_sizes or sorted({max(1, depth // 8), max(1, depth // 4)})
    if max(sizes) > depth:
        raise UserError(f"experiment.group_sizes has {max(sizes)}, and the model has {depth} decoder layers.")
    return [
        Panel(
            f"groups of {size}", _masks(config, {f"layers {group}": {"layers": group} for group in groups(size, depth)})
        )
        for size in sizes
    ]


def _data(config: Config, depth: int) -> list[Panel]:
    examples = config.data.n_train
    if examples is None:
        raise UserError("Experiment data takes shares of data.n_train: set it to a number of training examples.")
    rows = {**_methods(config, (CONTINUED,)), **_masks(config, {MFT: {}})}
    return [
        Panel(
            f"share {share:g}",
            rows,
            {"data": {"n_train": max(2, math.ceil(share * examples))}},
            dict.fromkeys(rows, share),
        )
        for share in config.experiment.data_shares
    ]


def _scope(config: Config, depth: int) -> list[Panel]:
    cells: dict[str, Changes] = {f"scope {scope}": {"scope": scope} for scope in config.experiment.scopes}
    mask = {**config.mask.__dict__, **config.compare.methods.get(MFT, {}).get("mask", {})}
    # The reference code's other layer: signed scores under one threshold, the one that removes as many at the start.
    threshold = NormalDist(sigma=mask["init_scale"]).inv_cdf(mask["ratio"]) if mask["ratio"] else -10.0
    cells["signed threshold"] = {"rule": "threshold", "init": "normal", "schedule": "constant", "threshold": threshold}
    return _one(_masks(config, cells))


def _transfer(config: Config, depth: int) -> list[Panel]:
    domains = config.experiment.domains
    if not domains and config.data.domain is not None:
        domains = {name: {"data": {"task": name}} for name in DOMAINS}
    if len(domains) < 2:
        raise UserError(
            "Experiment transfer needs at least two domains: name them in experiment.domains, each with what it "
            f"changes of data and evaluation, or take one of {', '.join(DOMAINS)} as data.task for the paper's three."
        )
    tasks = {name: _tasks(changes) for name, changes in domains.items()}
    every = [task for names in tasks.values() for task in names]
    rows = {**_methods(config, (CONTINUED,)), **_masks(config, {MFT: {}})}
    panels = []
    for name, changes in domains.items():
        others = [task for task in every if task not in tasks[name]]
        evaluation = {**changes.get("evaluation", {}), "tasks": tasks[name], "other_tasks": others}
        judged_on = tuple(other for other in domains if other != name and not tasks[other])
        panels.append(Panel(name, rows, {**changes, "evaluation": evaluation}, judged_on=judged_on))
    return panels


def _flatness(config: Config, depth: int) -> list[Panel]:
    return _one({**_methods(config, (CONTINUED,)), **_masks(config, {MFT: {}})})


def _recipes(config: Config, depth: int) -> list[Panel]:
    domains = config.experiment.domains or {"all": {}}
    return [Panel(name, dict(config.compare.methods), changes) for name, changes in domains.items()]


def _tasks(changes: Changes) -> list[str]:
    """Return the benchmark tasks of a domain; none means its own test examples."""
    domain = DOMAINS.get(changes.get("data", {}).get("task", ""))
    own = changes.get("evaluation", {}).get("tasks")
    return list(own if own is not None else domain.tasks if domain else ())


EXPERIMENTS = {
    "curves": Experiment("How does the score change while each method trains?", "tokens after FFT", _curves),
    "layers": Experiment("Which layers should be masked?", "masked layers", _layers),
    "ratio": Experiment("How many weights should be removed?", "masking ratio", _ratio),
    "data": Experiment("Does a mask still help with less data?", "share of the training data", _data),
    "scope": Experiment("Over what should scores be ranked?", "what is ranked together", _scope),
    "transfer": Experiment("What does a mask for one domain do to the others?", "judged on", _transfer),
    "recipes": Experiment("Which recipe wins on every seed?", "recipe", _recipes),
    "cost": Experiment("What does each method cost?", "method", _cost),
    "flatness": Experiment(
        "Is the masked model in a flatter place of the loss?", "distance along a random direction", _flatness
    ),
}
