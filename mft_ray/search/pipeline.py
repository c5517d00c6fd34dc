"""The whole way: backbone, FFT baseline, search, verdict, mask and model. Every stage can be resumed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from mft_ray.config import Config
from mft_ray.errors import UserError
from mft_ray.report.html import render
from mft_ray.report.leaderboard import show
from mft_ray.report.units import unit
from mft_ray.search.baseline import fft_baseline, fft_workers
from mft_ray.search.budget import Budget
from mft_ray.search.folder import RunFolder
from mft_ray.search.judging import judge_winner
from mft_ray.search.preparation import in_steps
from mft_ray.search.progress import TrialProgress, say
from mft_ray.search.results import write_results
from mft_ray.search.session import session
from mft_ray.search.stopping import AgainstFft
from mft_ray.search.trial import TrialPlan
from mft_ray.search.tuner import run_trials
from mft_ray.search.winner import BEST_MODEL, keep_winner
from mft_ray.training.artifacts import ADAPTER, MASK
from mft_ray.training.recipes import recipe


def search(config: Config | None, resume: str | None = None, look_again: bool = False) -> RunFolder:
    """Run a search from backbone to verdict, or go on with an interrupted one.

    Args:
        config: of a new search.
        resume: folder of an interrupted one, whose own configuration is used.
        look_again: the test examples may be looked at for another trial than before.

    Raises:
        UserError: something given cannot work; a new run has then written nothing.
    """
    with session(config, resume, searched=True) as run:
        _run(in_steps(run.config, run.folder), run.folder, run.start, run.concurrent, look_again)
    return run.folder


def _run(config: Config, folder: RunFolder, start: str, concurrent: int, look_again: bool) -> None:
    shown = unit(config.evaluation.metric)
    say(f"run folder {folder.root}")
    say("1/4 FFT baseline: " + ("given" if config.fft.given else "training until validation stops improving"))
    with fft_workers(config, folder) as group:
        baseline = fft_baseline(group, config, folder, start)
    say(f"FFT baseline: {shown.score(baseline.score)} on validation ({shown.label})")

    steps = recipe(config.search.method, config).train.steps
    say(f"2/4 search: {config.search.trials} trials of at most {steps} steps, {concurrent} at a time")
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
        steps,
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
    verdict = judge_winner(config, folder, baseline, start, rows, concurrent, look_again)

    say("4/4 mask, model and report")
    [winner] = [row for row in rows if row["trial_id"] == verdict["trial_id"]]
    keep_winner(folder, config, baseline, winner, verdict["sentence"])
    keep_results()
    report = render(folder.root)
    _tell(folder, verdict, report)


def _reasons(rows: list[dict[str, Any]]) -> str:
    reasons = sorted({row.get("error") or row["stopped_reason"] for row in rows})
    return "; ".join(reasons) or "no trial ran"


def _tell(folder: RunFolder, verdict: dict[str, Any], report: Path) -> None:
    show(folder.root)
    print(f"\n{verdict['sentence']}\n")
    print(f"report  {report}")
    for label, path in (("mask", MASK), ("adapter", ADAPTER), ("model", BEST_MODEL)):
        if (folder.best / path).exists():
            print(f"{label:<7} {folder.best / path}")
    print(f"study   python -m mft_ray.dashboard {folder.root}", flush=True)
