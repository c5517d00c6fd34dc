"""What a trial of the quickstart would do, without training it: recorded and interpolated, or made up."""

from __future__ import annotations

import json
import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mft_ray.runs.folder import RunFolder
from mft_ray.training.job import Evaluation, Outcome

Cell = tuple[str, str, str]
# One standard deviation of the offset that stands for a trial's seed: about the standard error of a difference on the
# quickstart's validation examples. Assumed, not measured.
SEED_NOISE = 0.003


@dataclass(frozen=True)
class Point:
    """A trial that was run.

    Attributes:
        score: its best, as seen; NaN if it diverged.
        true: what that is without noise.
        evaluations: that it took.
    """

    score: float
    true: float
    evaluations: int


class Response(Protocol):
    """What trials do.

    Attributes:
        name: in tables.
        best: the highest true score that there is.
        worst: the lowest.
        rates: the learning rates between which it is known; empty where it is everywhere.
    """

    name: str
    best: float
    worst: float
    rates: Sequence[float]

    def curve(self, config: dict[str, Any], seed: int) -> list[Evaluation]:
        """Return the evaluations of a trial, with a seed's noise; a NaN is where it diverged."""

    def true(self, config: dict[str, Any], evaluations: int) -> float:
        """Return the best eligible score of its first evaluations, without noise."""


def record(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Return settings and evaluations of every trial of finished searches that ran to its full length."""
    kept = ("step", "score", "eligible", "delta", "delta_error")
    rows = []
    for path in sorted(path for run in runs for path in RunFolder(run).trials.glob("*/outcome.json")):
        outcome = Outcome.load(path)
        if outcome.stopped_reason == "completed":
            curve = [[getattr(each, name) for name in kept] for each in outcome.history]
            rows.append({"config": json.loads(path.with_name("config.json").read_text()), "curve": curve})
    return rows


class Recorded:
    """A recorded grid, bilinear in the ratio and in the logarithm of the learning rate between its points."""

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        points: dict[float, dict[float, dict[Cell, list[list[Any]]]]] = defaultdict(lambda: defaultdict(dict))
        for row in json.loads(path.read_text()):
            config = row["config"]
            points[config["lr"]][config["ratio"]][config["layers"], config["init"], config["schedule"]] = row["curve"]
        # A learning rate that lacks points, or a ratio that only the preset has, is on no axis of the grid.
        cells = max(len(of_ratio) for of_rate in points.values() for of_ratio in of_rate.values())
        whole = {
            rate: sorted(ratio for ratio, of_ratio in of_rate.items() if len(of_ratio) == cells)
            for rate, of_rate in points.items()
        }
        self._ratios = max(whole.values(), key=len)
        self.rates = sorted(rate for rate, ratios in whole.items() if ratios == self._ratios)
        self._logs = [math.log(rate) for rate in self.rates]
        self._curves = {
            (cell, ratio, log): curve
            for rate, log in zip(self.rates, self._logs, strict=True)
            for ratio in self._ratios
            for cell, curve in points[rate][ratio].items()
        }
        ends = [_best(curve) for curve in self._curves.values()]
        self.best, self.worst = max(ends), min(ends)

    def curve(self, config: dict[str, Any], seed: int) -> list[Evaluation]:
        """Return the evaluations of a trial."""
        offset = random.Random(seed).gauss(0.0, SEED_NOISE)
        return [
            # Before the ratio is reached an annealed mask is near FFT whatever the seed.
            _evaluation(step, score + offset * eligible, eligible, delta + offset * eligible, error)
            for step, score, eligible, delta, error in self._of(config)
        ]

    def true(self, config: dict[str, Any], evaluations: int) -> float:
        """Return the best eligible score of its first evaluations."""
        return _best(self._of(config)[:evaluations])

    def _of(self, config: dict[str, Any]) -> list[list[Any]]:
        cell = (config["layers"], config["init"], config["schedule"])
        return self._mix(cell, config["ratio"], math.log(config["lr"]))

    def _mix(self, cell: Cell, ratio: float, log: float) -> list[list[Any]]:
        corners = [
            (one * other, self._curves[cell, x, y])
            for x, one in _weights(self._ratios, ratio)
            for y, other in _weights(self._logs, log)
        ]
        _, first = corners[0]
        mixed = []
        for at, (step, _, eligible, _, _) in enumerate(first):
            score, delta, error = (sum(w * curve[at][column] for w, curve in corners) for column in (1, 3, 4))
            mixed.append([step, score, eligible, delta, error])
        return mixed


class MadeUp:
    """A smooth hill over the quickstart's space: good masks come to a plateau early, high learning rates diverge."""

    name = "made up"
    best, worst = 0.9, 0.0
    rates = ()
    _fft, _steps = 0.85, (0, 100, 200, 300, 400, 500, 600)

    def curve(self, config: dict[str, Any], seed: int) -> list[Evaluation]:
        """Return the evaluations of a trial."""
        offset = random.Random(seed).gauss(0.0, SEED_NOISE)
        made = []
        for step, score in zip(self._steps, self._scores(config), strict=True):
            seen = score + offset
            made.append(_evaluation(step, seen, True, seen - self._fft, 0.004))
        return made

    def true(self, config: dict[str, Any], evaluations: int) -> float:
        """Return the best score of its first evaluations."""
        return max(self._scores(config)[:evaluations])

    def _scores(self, config: dict[str, Any]) -> list[float]:
        log = math.log10(config["lr"])
        if log > -2.4 + (0.2 if config["layers"] == "2-3" else 0.0):  # 0.004
            return [0.5, *[math.nan] * 6]
        far = ((log + 2.7) / 0.6) ** 2 + ((config["ratio"] - 0.25) / 0.15) ** 2
        far += {"0-3": 0.0, "0-1": 0.5, "2-3": 1.0}[config["layers"]]
        far += (config["init"] == "normal") * 0.5 + (config["schedule"] == "constant") * 0.5
        end = 0.9 - 0.1 * (1 - math.exp(-far / 3)) - 0.02 * math.log1p(far)
        pace = 4.0 if end > self._fft else 1.0  # good ones are there early, and stay
        return [0.5 + (end - 0.5) * (1 - math.exp(-pace * (1 + step / 100))) for step in self._steps]


def _weights(axis: list[float], value: float) -> list[tuple[float, float]]:
    """Return the neighbours of a value on an axis and how much each counts."""
    if value <= axis[0]:
        return [(axis[0], 1.0)]
    if value >= axis[-1]:
        return [(axis[-1], 1.0)]
    above = next(place for place in axis if place >= value)
    below = axis[axis.index(above) - 1]
    share = (value - below) / (above - below)
    return [(below, 1 - share), (above, share)]


def _evaluation(step: int, score: float, eligible: bool, delta: float, error: float) -> Evaluation:
    return Evaluation(step, score, 0.0, 0, 0.0, 0.0, 0.0, eligible, delta, error)


def _best(curve: Sequence[Sequence[Any]]) -> float:
    return max((score for _, score, eligible, _, _ in curve if eligible), default=-math.inf)
