"""How good the trials are that a search proposes: regret after so many of them, against drawing at random.

    .venv/bin/python benchmarks/search_quality.py grid > GRID.yaml
    .venv/bin/python cluster/local.py -- python -m mft_ray.tune --config GRID.yaml --set run.dir=RUN
    .venv/bin/python benchmarks/search_quality.py record RUN --out recordings/quickstart-grid.json
    .venv/bin/python benchmarks/search_quality.py run recordings/quickstart-grid.json --out search_quality.json

``grid`` is the quickstart with 180 given trials, every one run to its full length: five learning rates by three ratios
in each of the twelve combinations of layer group, start and schedule. What the search is then played against is that
recording, interpolated between the grid's points (``response.py``), with the noise of a seed added to every trial, and,
with ``--made-up``, a hill on which high learning rates diverge. Samplers, what Optuna is told, and the stop rule are
the product's own code. Regret is the best true score there is, less that of the trial the search would pick, in points.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState
from response import MadeUp, Point, Recorded, Response, record

from mft_ray.config import Config, load_config
from mft_ray.runs.study.live import LiveStudy
from mft_ray.searches.optuna_search import StudySearch, build_search
from mft_ray.searches.space import build_space, points_to_evaluate
from mft_ray.searches.trial_report import Ended, Evaluated
from mft_ray.training.job import Evaluation, StopReason
from mft_ray.training.stopping import AgainstFft, projected

QUICKSTART = Path(__file__).parent.parent / "tune_spaces" / "quickstart.yaml"
DEPTH = 4
AFTER = (8, 16, 32, 64)
GRID = {"lr": (1e-3, 1e-2, 2e-5, 3e-3, 2e-4), "ratio": (0.2, 0.5, 0.05)}


class Pruning(StudySearch):
    """As searches told Optuna before: trials that ended for these reasons PRUNED, those that diverged FAIL."""

    reasons: tuple[str, ...] = ()

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        reason = (result or {})["stopped_reason"]
        if reason not in self.reasons:
            super().on_trial_complete(trial_id, result, error)
            return
        state = TrialState.FAIL if reason == "failed" else TrialState.PRUNED
        self._ot_study.tell(self._ot_trials[trial_id], state=state)
        self._completed_trials.add(trial_id)


@dataclass(frozen=True)
class Setting:
    """One way to search.

    Attributes:
        sampler: of `mft_ray.searches.optuna_search.build_sampler`.
        told: what Optuna is told of trials that were stopped early: ``best`` (the product's), ``projection`` (for
            ``below_fft`` the score that the stop rule expected), ``below_fft pruned``, or ``pruned`` (all, as before).
    """

    sampler: str
    told: str

    def search(self, config: Config, seed: int, points: list[dict[str, Any]]) -> StudySearch:
        space = build_space(config, DEPTH)
        study, startup = LiveStudy(InMemoryStorage()), config.search.startup_trials
        made = build_search(study, space, points, self.sampler, startup, seed)
        if "pruned" in self.told:
            made.__class__ = Pruning
            every = ("below_fft", "plateau", "failed")
            made.reasons = ("below_fft",) if self.told.startswith("below_fft") else every
        return made


SETTINGS = [
    Setting("random", "best"),
    *(
        Setting(sampler, told)
        for sampler in ("tpe", "gp", "cmaes")
        for told in ("best", "projection", "below_fft pruned", "pruned")
    ),
]


def grid() -> dict[str, Any]:
    """Return the quickstart's tree with every point of the grid given, and nothing stopped early."""
    tree: dict[str, Any] = yaml.safe_load(QUICKSTART.read_text())
    space = load_config(QUICKSTART).search.space
    axes = {**GRID, "layers": space.layers, "init": space.init, "schedule": space.schedule}
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    changes = {"extra_points": points, "trials": len(points) + 1, "stop": {"below_fft": False, "plateau": None}}
    tree["search"] |= {**changes, "keep": 1}
    return tree


def config_of(response: Response) -> Config:
    """Return the quickstart's configuration with nothing given, over the learning rates that a response knows."""
    known = f"{{low: {min(response.rates)}, high: {max(response.rates)}}}" if response.rates else "{}"
    return load_config(QUICKSTART, ["search.extra_points=[]", f"search.space.lr={known}"])


def trial(search: StudySearch, name: str, response: Response, rule: AgainstFft, told: str, seed: int) -> Point:
    """Run one trial against a response; returns what it was and what it is worth."""
    config = search.suggest(name)
    assert isinstance(config, dict)
    history: list[Evaluation] = []
    best, reason, curve = math.nan, StopReason.COMPLETED, response.curve(config, seed)
    steps = curve[-1].step
    for evaluation in curve:
        if math.isnan(evaluation.score):
            search.on_trial_complete(name, Ended(StopReason.FAILED, math.nan, evaluation, diverged=True).to_tune())
            return Point(math.nan, math.nan, len(history))
        history.append(evaluation)
        if evaluation.eligible and not evaluation.score <= best:
            best = evaluation.score
        search.on_trial_result(name, Evaluated(evaluation, best, steps).to_tune())
        if evaluation.step < steps and (found := rule(history, steps)):
            reason = found.reason
            break
    value = best
    if told == "projection" and reason == StopReason.BELOW_FFT:
        eligible = [evaluation for evaluation in history if evaluation.eligible]
        ahead = projected(eligible, steps)
        value = max(best, best - max(each.delta for each in eligible) + ahead) if math.isfinite(ahead) else best
    search.on_trial_complete(name, Ended(reason, value, history[-1]).to_tune())
    return Point(best, response.true(config, len(history)), len(history))


def regrets(setting: Setting, response: Response, config: Config, seed: int, trials: int) -> list[float]:
    """Return, after each trial, by how much the best there is beats what the search would pick."""
    rule = AgainstFft(config.search.stop)
    search = setting.search(config, seed, points_to_evaluate(config, DEPTH))
    left, picked = [], Point(-math.inf, response.worst, 0)
    for number in range(trials):
        made = trial(search, f"{number}", response, rule, setting.told, 1000 * seed + number)
        if made.score > picked.score:
            picked = made
        left.append(response.best - picked.true)
    return left


def row(setting: Setting, response: Response, config: Config, repetitions: int, trials: int) -> dict[str, Any]:
    """Return the mean regrets of a setting over repetitions, and their standard errors."""
    began = time.monotonic()
    runs = [regrets(setting, response, config, seed, trials) for seed in range(repetitions)]
    means = [statistics.fmean(each) for each in zip(*runs, strict=True)]
    errors = [statistics.stdev(each) / math.sqrt(repetitions) for each in zip(*runs, strict=True)]
    return {
        "response": response.name,
        "sampler": setting.sampler,
        "told": setting.told,
        "repetitions": repetitions,
        "regret": means,
        "standard_error": errors,
        "seconds": time.monotonic() - began,
    }


def as_good_as(regret: Sequence[float], bar: float) -> int | None:
    """Return after how many trials a regret is at most the bar; None if it never is."""
    return next((number for number, value in enumerate(regret, 1) if value <= bar), None)


def line(made: dict[str, Any], at_random: dict[str, Any] | None) -> str:
    """Return a row of the table."""
    cells = [
        f"{100 * made['regret'][n - 1]:.2f} ± {100 * made['standard_error'][n - 1]:.2f}"
        for n in AFTER
        if n <= len(made["regret"])
    ]
    bar = at_random["regret"][min(32, len(at_random["regret"])) - 1] if at_random else math.nan
    needed = as_good_as(made["regret"], bar)
    return f"| {made['response']} | {made['sampler']} | {made['told']} | {' | '.join(cells)} | {needed or '—'} |"


def parse(given: str) -> Setting:
    """Read a setting such as ``tpe:best``."""
    sampler, _, told = given.partition(":")
    return Setting(sampler, told or "best")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("action", choices=("grid", "record", "run"))
    arguments.add_argument("paths", nargs="*", type=Path, help="run folders to record, or recordings to search")
    arguments.add_argument("--repetitions", type=int, default=100)
    arguments.add_argument("--trials", type=int, default=AFTER[-1])
    arguments.add_argument("--settings", nargs="+", type=parse, default=SETTINGS, help="such as tpe:best")
    arguments.add_argument("--made-up", action="store_true", help="search the made-up response as well")
    arguments.add_argument("--out", type=Path)
    options = arguments.parse_args()
    if options.action == "grid":
        print(yaml.safe_dump(grid(), sort_keys=False))
        return
    if options.action == "record":
        options.out.write_text(json.dumps(record(options.paths)) + "\n")
        return
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    make: list[Callable[[], Response]] = [partial(Recorded, path) for path in options.paths]
    responses = [each() for each in make] + ([MadeUp()] if options.made_up else [])
    shown = [f"{n}" for n in AFTER if n <= options.trials]
    print(f"| response | sampler | told | {' | '.join(shown)} | as good as random at 32 |")
    print("|" + " --- |" * (len(shown) + 4))
    rows = []
    for response in responses:
        config, at_random = config_of(response), None
        for setting in options.settings:
            rows.append(row(setting, response, config, options.repetitions, options.trials))
            at_random = rows[-1] if setting.sampler == "random" else at_random
            print(line(rows[-1], at_random), flush=True)
            if options.out:
                about = {name: version(name) for name in ("optuna", "torch")}
                options.out.write_text(json.dumps({**about, "rows": rows}) + "\n")


if __name__ == "__main__":
    main()
