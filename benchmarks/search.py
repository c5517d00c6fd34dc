"""Warm worker groups against a fresh one for every trial: the same trials, one after the other, on one Ray.

    .venv/bin/python benchmarks/search.py RUN [--trials 12] [--steps 150] [--out FILE]

RUN is the folder of a finished search: its FFT model, data and settings are used. Both searches try the same points.
``warm`` is what a search does; ``fresh`` is the plain pattern of Ray Tune with Ray Train: a driver function for each
trial, which starts a `TorchTrainer`. Wall time includes the start of the first groups and the end of the last. A
trial's useful time is training and evaluation; efficiency is useful time / (wall time x slots). Latency is from one
trial's last evaluation to the moment the next one on its slot begins its first; medians over trials after each slot's
first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.tune
from ray.tune import Callback

from mft_ray.config import Config, load_config
from mft_ray.runs.fft_model import FftModel
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.study.live import LocalStudy
from mft_ray.searches.optuna_search import build_search
from mft_ray.searches.space import build_space, points_to_evaluate
from mft_ray.searches.trial import MaskTrial, TrialPlan
from mft_ray.searches.trial_report import METRIC, Ended, from_tune
from mft_ray.searches.tuner import DRIVER
from mft_ray.training.job import Outcome
from mft_ray.training.stopping import AgainstFft
from mft_ray.workers.capacity import concurrent_trials
from mft_ray.workers.connection import connected
from mft_ray.workers.launch import launch


class Watch(Callback):  # type: ignore[misc]
    """Note when trials begin and end to be useful, by what their evaluations say."""

    def __init__(self) -> None:
        self.begun: dict[str, float] = {}
        self.ended: dict[str, float] = {}

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        report = from_tune(result)
        if isinstance(report, Ended):
            return
        now = time.time()
        self.begun.setdefault(trial.trial_id, now - report.evaluation.seconds)
        self.ended[trial.trial_id] = now


class FreshWatch(Watch):
    """The same of trials that report once, at their end: their files tell when."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__()
        self.folder = folder

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        path = self.folder.trial(trial.trial_id) / "outcome.json"
        self.ended[trial.trial_id] = path.stat().st_mtime
        self.begun[trial.trial_id] = path.stat().st_mtime - Outcome.load(path).history[-1].seconds

    def on_trial_result(self, *args: Any, **info: Any) -> None:
        """There is nothing before the end."""


def fresh(point: dict[str, Any], plan: TrialPlan) -> None:
    """The plain pattern: a worker group for this trial alone."""
    outcome = launch(plan.job(ray.tune.get_context().get_trial_id(), point))
    last = outcome.history[-1]
    ray.tune.report(Ended(outcome.stopped_reason, last.score, last).to_tune())


def search(trainable: Any, plan: TrialPlan, watch: Watch, depth: int, slots: int, reuse: bool) -> dict[str, Any]:
    """Run all trials and return what they cost."""
    config, folder = plan.config, RunFolder(Path(plan.root))
    points = [
        {**points_to_evaluate(config, depth)[0], "layers": layers, "ratio": ratio, "lr": 1e-3, "schedule": "anneal"}
        for ratio in (0.1, 0.2, 0.3, 0.4)
        for layers in (f"0-{depth - 1}", f"{depth // 2}-{depth - 1}", f"0-{depth // 2 - 1}")
    ]
    algorithm = build_search(LocalStudy(folder.study), build_space(config, depth), points, "random", 6, 0)
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # Tune's own tables
    began = time.time()
    ray.tune.Tuner(
        ray.tune.with_resources(ray.tune.with_parameters(trainable, plan=plan), DRIVER),
        tune_config=ray.tune.TuneConfig(
            search_alg=algorithm,
            metric=METRIC,
            mode="max",
            num_samples=config.search.trials,
            max_concurrent_trials=slots,
            reuse_actors=reuse,
        ),
        run_config=ray.tune.RunConfig(
            storage_path=str(folder.tune),
            callbacks=[watch],
            verbose=0,
            checkpoint_config=ray.tune.CheckpointConfig(checkpoint_at_end=False) if reuse else None,
        ),
    ).fit()
    wall = time.time() - began
    useful = sum(watch.ended[trial] - begun for trial, begun in watch.begun.items())
    starts, ends = sorted(watch.begun.values())[slots:], sorted(watch.ended.values())
    gaps = [start - end for start, end in zip(starts, ends, strict=False)]
    return {
        "trials": len(watch.begun),
        "wall_s": wall,
        "start_s": min(watch.begun.values()) - began,
        "end_s": began + wall - max(watch.ended.values()),
        "useful_s_per_trial": useful / len(watch.begun),
        "trials_per_hour": 3600 * len(watch.begun) / wall,
        "efficiency": useful / (wall * slots),
        "latency_s": statistics.median(gaps),
        "worst_latency_s": max(gaps),
    }


def plan_in(root: Path, config: Config, baseline: FftModel, data: Path) -> TrialPlan:
    """Return the plan of a search in a folder of its own, on prepared data."""
    folder = RunFolder(root)
    folder.trials.mkdir(parents=True)
    folder.data.symlink_to(data)
    stop = config.search.stop.model_copy(update={"below_fft": False, "plateau": None})
    return TrialPlan(config, str(root), baseline.model, baseline.fingerprint, None, baseline.scores, AgainstFft(stop))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("run", type=Path)
    arguments.add_argument("--trials", type=int, default=12)
    arguments.add_argument("--steps", type=int, default=150)
    arguments.add_argument("--only", nargs="+", choices=("warm", "fresh"))
    arguments.add_argument("--out", type=Path)
    options = arguments.parse_args()
    given = RunFolder(options.run.resolve())
    config = load_config(given.config, [f"search.trials={options.trials}", "search.extra_points=[]"]).seeded()
    config.train.steps, config.train.eval_every = options.steps, max(1, options.steps // 3)
    baseline = FftModel.load(given.fft_model)
    rows: dict[str, dict[str, Any]] = {}
    print("| workers | wall s | trials/h | useful s per trial | efficiency | latency s, median and worst |")
    print("| --- | --- | --- | --- | --- | --- |")
    variants: dict[str, tuple[Any, Callable[[RunFolder], Watch], bool]] = {
        "warm": (MaskTrial, lambda folder: Watch(), True),
        "fresh": (fresh, FreshWatch, False),
    }
    variants = {name: variants[name] for name in options.only or variants}
    with connected(), tempfile.TemporaryDirectory() as scratch:
        slots = concurrent_trials(config.scaling, config.search.max_concurrent)
        for name, (trainable, watch, reuse) in variants.items():
            plan = plan_in(Path(scratch) / name, config, baseline, given.data)
            row = search(trainable, plan, watch(RunFolder(Path(plan.root))), baseline.depth, slots, reuse)
            rows[name] = row
            print(
                f"| {name} | {row['wall_s']:.0f} | {row['trials_per_hour']:.0f} | {row['useful_s_per_trial']:.1f} | "
                f"{row['efficiency']:.2f} | {row['latency_s']:.2f}, {row['worst_latency_s']:.2f} |",
                flush=True,
            )
    if len(rows) < 2:
        print(json.dumps(rows, indent=1))
        return
    ratio = rows["warm"]["trials_per_hour"] / rows["fresh"]["trials_per_hour"]
    print(f"\nwarm does {ratio:.1f} x the trials of fresh in the same time, {slots} at a time")
    if options.out:
        options.out.write_text(json.dumps({"slots": slots, "ratio": ratio, **rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
