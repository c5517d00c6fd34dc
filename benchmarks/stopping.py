"""What early stopping saves and loses: rules replayed on trials that were recorded at full length.

    .venv/bin/python cluster/local.py -- python -m mft_ray.tune --config tune_spaces/quickstart.yaml \\
        --set search.trials=24 --set search.stop.below_fft=false --set search.stop.plateau=null --set run.dir=RUN
    .venv/bin/python benchmarks/stopping.py record RUN --out recording.json
    .venv/bin/python benchmarks/stopping.py replay recording.json ...

Our rule (`mft_ray.training.stopping`) is asked after every recorded evaluation. ASHA and median stopping are Ray Tune's
own, in a real Tune run whose trials report what was recorded, two at a time. Saved is the share of all optimizer steps;
lost are trials that ended above FFT and were stopped before they were; the winner is lost if it was stopped before
its best evaluation.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray.tune
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule, TrialScheduler

from mft_ray.config import StopConfig
from mft_ray.runs.folder import RunFolder
from mft_ray.training.job import Evaluation, Outcome, read_history
from mft_ray.training.stopping import AgainstFft
from mft_ray.workers.connection import connected

Curve = list[Evaluation]


def record(run: Path) -> list[list[dict[str, Any]]]:
    """Return every evaluation of every trial of a finished search."""
    outcomes = [Outcome.load(path) for path in sorted(RunFolder(run).trials.glob("*/outcome.json"))]
    kept = ("step", "score", "eligible", "delta", "delta_error")
    return [
        [{name: asdict(row)[name] for name in kept} for row in outcome.history]
        for outcome in outcomes
        if outcome.stopped_reason == "completed"
    ]


def load(path: Path) -> list[Curve]:
    """Read what `record` returned, as evaluations."""
    absent = {"standard_error": 0.0, "tokens": 0, "seconds": 0.0, "loss": 0.0, "ratio": 0.0}
    trials: list[list[dict[str, Any]]] = json.loads(path.read_text())
    return [read_history([{**absent, **row} for row in rows]) for rows in trials]


def best(curve: Sequence[Evaluation]) -> float:
    """The best difference to FFT so far; minus infinity while there is none."""
    return max((row.delta for row in curve if row.eligible), default=float("-inf"))


def by_our_rule(curves: Sequence[Curve], settings: StopConfig) -> list[int]:
    """Return how many evaluations of each trial were made before our rule ended it."""
    rule = AgainstFft(settings)
    total = [curve[-1].step for curve in curves]
    return [
        next((n for n in range(2, len(curve)) if rule(curve[:n], steps)), len(curve))
        for curve, steps in zip(curves, total, strict=True)
    ]


def by_scheduler(curves: Sequence[Curve], scheduler: TrialScheduler) -> list[int]:
    """Return how many evaluations of each trial were made before a scheduler of Ray Tune's ended it."""

    def replay(config: dict[str, Any]) -> None:
        for row in curves[config["index"]]:
            # Like Optuna, it is told the best eligible score so far.
            ray.tune.report({"step": row.step + 1, "value": row.score})

    with tempfile.TemporaryDirectory() as scratch:
        results = ray.tune.Tuner(
            ray.tune.with_resources(replay, {"CPU": 1}),
            param_space={"index": ray.tune.grid_search(list(range(len(curves))))},
            tune_config=ray.tune.TuneConfig(
                metric="value", mode="max", scheduler=scheduler, max_concurrent_trials=2, reuse_actors=True
            ),
            run_config=ray.tune.RunConfig(storage_path=scratch, verbose=0),
        ).fit()
        made = {result.config["index"]: result.metrics["training_iteration"] for result in results}
    return [made[index] for index in range(len(curves))]


def judge(curves: Sequence[Curve], made: Sequence[int]) -> dict[str, Any]:
    """Return what stopping after so many evaluations saves and loses."""
    used = sum(curve[n - 1].step for curve, n in zip(curves, made, strict=True))
    above = [index for index, curve in enumerate(curves) if best(curve) > 0]
    winner = max(range(len(curves)), key=lambda index: best(curves[index]))
    return {
        "trials": len(curves),
        "saved": 1 - used / sum(curve[-1].step for curve in curves),
        "above_fft": len(above),
        "lost": sum(best(curves[index][: made[index]]) <= 0 for index in above),
        "winner_lost": best(curves[winner][: made[winner]]) < best(curves[winner]),
    }


def rules(curves: Sequence[Curve]) -> dict[str, list[int]]:
    """Return what each rule lets happen of each trial."""
    steps = max(row.step for curve in curves for row in curve)
    every = curves[0][1].step
    return {
        "ours": by_our_rule(curves, StopConfig()),
        "ours, plateau 2": by_our_rule(curves, StopConfig(plateau=2)),
        "ASHA": by_scheduler(
            curves, ASHAScheduler(time_attr="step", max_t=steps + 1, grace_period=every + 1, reduction_factor=3)
        ),
        "median stopping": by_scheduler(
            curves, MedianStoppingRule(time_attr="step", grace_period=every + 1, min_samples_required=3)
        ),
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("action", choices=("record", "replay"))
    arguments.add_argument("paths", nargs="+", type=Path)
    arguments.add_argument("--out", type=Path)
    options = arguments.parse_args()
    if options.action == "record":
        trials = [trial for run in options.paths for trial in record(run)]
        options.out.write_text(json.dumps(trials) + "\n")
        print(f"{len(trials)} trials in {options.out}")
        return
    rows = []
    print("| recording | rule | trials | steps saved | above FFT | of them lost | winner |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with connected(num_cpus=2):
        for path in options.paths:
            curves = load(path)
            for name, made in rules(curves).items():
                row = {"recording": path.stem, "rule": name, **judge(curves, made)}
                rows.append(row)
                fate = "lost" if row["winner_lost"] else "kept"
                print(
                    f"| {path.stem} | {name} | {row['trials']} | {row['saved']:.0%} | {row['above_fft']} | "
                    f"{row['lost']} | {fate} |",
                    flush=True,
                )
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
