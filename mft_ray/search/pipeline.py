"""The whole way: backbone, FFT baseline, search, verdict, mask and model. Every stage can be resumed."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from mft_ray.config import Config, load_config
from mft_ray.errors import UserError
from mft_ray.report.html import render
from mft_ray.report.leaderboard import show
from mft_ray.report.units import unit
from mft_ray.search.baseline import Baseline, continued_fft, fft_baseline, fft_workers
from mft_ray.search.budget import Budget
from mft_ray.search.capacity import concurrent_trials
from mft_ray.search.cluster import connected
from mft_ray.search.folder import RunFolder, lock, open_folder
from mft_ray.search.preparation import check, in_steps, make_ready, with_absolute_paths
from mft_ray.search.progress import TrialProgress, say
from mft_ray.search.results import write_results
from mft_ray.search.scoring import Subject, score
from mft_ray.search.stopping import AgainstFft
from mft_ray.search.trial import TrialPlan
from mft_ray.search.tuner import run_trials
from mft_ray.search.verdict import compare, judge
from mft_ray.search.winner import keep_winner
from mft_ray.training.job import write_json


def search(config: Config | None, resume: str | None = None) -> RunFolder:
    """Run a search from backbone to verdict, or go on with an interrupted one.

    Args:
        config: of a new search.
        resume: folder of an interrupted one, whose own configuration is used.

    Raises:
        UserError: something given cannot work; a new run has then written nothing.
    """
    if resume is not None:
        config = load_config(Path(resume).expanduser() / "config.yaml")
    assert config is not None
    config = with_absolute_paths(config)
    seeded = config.seeded()
    check(seeded)
    folder = open_folder(config, resume)
    with connected():
        concurrent = concurrent_trials(seeded.scaling, seeded.search.max_concurrent)
        concurrent_trials(seeded.fft.scaling or seeded.scaling)
        held = lock(folder)
        try:
            start = _prepare(config, seeded, folder, new=resume is None)
            _run(in_steps(seeded, folder), folder, start, concurrent)
        except KeyboardInterrupt:
            say(f"interrupted; what was finished is kept: --resume {folder.root}")
            raise
        finally:
            held.release()
    return folder


def _prepare(config: Config, seeded: Config, folder: RunFolder, new: bool) -> str:
    # First, so that whatever is interrupted from here on can be resumed.
    config.save(folder.config)
    try:
        return make_ready(seeded, folder)
    except UserError:
        if new:
            shutil.rmtree(folder.root, ignore_errors=True)
        raise


def _run(config: Config, folder: RunFolder, start: str, concurrent: int) -> None:
    shown = unit(config.evaluation.metric)
    say(f"run folder {folder.root}")
    say("1/4 FFT baseline: " + ("given" if config.fft.given else "training until validation stops improving"))
    with fft_workers(config, folder) as group:
        baseline = fft_baseline(group, config, folder, start)
    say(f"FFT baseline: {shown.score(baseline.score)} on validation ({shown.label})")

    say(f"2/4 search: {config.search.trials} trials of at most {config.train.steps} steps, {concurrent} at a time")
    plan = TrialPlan(
        config,
        str(folder.root),
        baseline.model,
        baseline.fingerprint,
        baseline.before,
        baseline.scores,
        AgainstFft(config.search.stop),
    )
    keep_results = partial(write_results, folder, baseline, config.search.keep)
    keep_results()
    progress = TrialProgress(
        config.search.trials,
        config.train.steps,
        concurrent,
        config.evaluation,
        baseline.score,
        baseline.watched,
        folder,
        keep_results,
    )
    try:
        run_trials(plan, folder, baseline.depth, progress)
    except KeyboardInterrupt:
        if any(row["watched"] is not None for row in keep_results()):
            say(f"report so far: {render(folder.root)}")
        raise
    rows = keep_results()
    if limit := Budget(config.search.budget, folder.work).reached():
        say(f"the budget is spent ({limit}): the verdict is on what there is")

    if not rows or rows[0]["watched"] is None:
        render(folder.root)
        raise UserError(
            f"No trial of {folder.root} reached its masking ratio and a score, so there is nothing to judge: "
            f"{_reasons(rows)}. See report.html there."
        )
    say("3/4 verdict: one look at the untouched test examples")
    verdict = _judge(config, folder, baseline, rows[0])

    say("4/4 mask, model and report")
    keep_winner(folder, config, baseline, rows[0], verdict["sentence"])
    keep_results()
    report = render(folder.root)
    _tell(folder, verdict, report, config.run.export_model)


def _judge(config: Config, folder: RunFolder, baseline: Baseline, row: dict[str, Any]) -> dict[str, Any]:
    """Score FFT, continued FFT and the winner on test, once, and write what that shows."""
    if folder.verdict.exists():
        kept: dict[str, Any] = json.loads(folder.verdict.read_text())
        return kept
    fft = Subject("fft", baseline.model)
    mask = folder.trial(row["trial_id"]) / "mask.safetensors"
    mft = Subject("mft", baseline.model, str(mask), baseline.before)
    evaluation = config.evaluation
    metrics = [evaluation.metric, *(name for name in evaluation.extra if name != evaluation.metric)]
    limits = {name: evaluation.extra_n if name != evaluation.metric else None for name in metrics}
    with fft_workers(config, folder) as group:
        continued = continued_fft(group, config, folder, baseline, row["tokens"])
        values = {
            (subject.name, name): score(group, subject, "test", config, folder, name, limits[name])
            for subject in (continued, fft, mft)
            for name in metrics
        }
        continued_validation = score(group, continued, "validation", config, folder)
    named = {name: values[name, evaluation.metric] for name in ("mft", "fft", "continued")}
    verdict = judge(evaluation.metric, named["mft"], named["fft"], named["continued"], evaluation.resamples)
    verdict["trial_id"] = row["trial_id"]
    verdict["extra"] = [
        {
            **compare(name, values["mft", name], values["fft", name], evaluation.resamples),
            "continued": sum(values["continued", name]) / len(values["continued", name]),
        }
        for name in metrics[1:]
    ]
    _complete_baseline(config, folder, named, continued_validation)
    write_json(folder.verdict, verdict)
    return verdict


def _complete_baseline(
    config: Config, folder: RunFolder, named: dict[str, list[float]], continued_validation: list[float]
) -> None:
    record = json.loads(folder.baseline.read_text())
    outcome = json.loads((folder.continued / "outcome.json").read_text())
    best, last = outcome["history"][outcome["best"]], outcome["history"][-1]
    tests = {name: _mean(values) for name, values in named.items()}
    record["test"] = tests["fft"]
    record["continued"] = {
        "method": "fft",
        "metric": config.evaluation.metric,
        "validation": _mean(continued_validation),
        "test": tests["continued"],
        "best_step": best["step"],
        "steps": last["step"],
        "tokens": last["tokens"],
        "seconds": last["seconds"],
    }
    write_json(folder.baseline, record)


def _mean(values: list[float]) -> dict[str, Any]:
    return {"score": sum(values) / len(values), "n": len(values)}


def _reasons(rows: list[dict[str, Any]]) -> str:
    reasons = sorted({row.get("error") or row["stopped_reason"] for row in rows})
    return "; ".join(reasons) or "no trial ran"


def _tell(folder: RunFolder, verdict: dict[str, Any], report: Path, model: bool) -> None:
    show(folder.root)
    print(f"\n{verdict['sentence']}\n")
    print(f"report  {report}")
    print(f"mask    {folder.best / 'mask.safetensors'}")
    if model:
        print(f"model   {folder.best / 'model'}")
    print(f"study   python -m mft_ray.dashboard {folder.root}", flush=True)
