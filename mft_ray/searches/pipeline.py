"""The whole way: backbone, FFT baseline, search, verdict, mask and model. Every stage can be resumed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial

from mft_ray.baselines.fft import fft_baseline
from mft_ray.config import METHODS, Config
from mft_ray.errors import RunFailed, UserError
from mft_ray.report.html import render
from mft_ray.report.summary import tell
from mft_ray.report.terminal import Outlook, drawn
from mft_ray.runs.context import at_work
from mft_ray.runs.fft_model import FftModel
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.live.cluster import cluster_noted
from mft_ray.runs.live.steering import asked_to_end, queue
from mft_ray.runs.picked import picked
from mft_ray.runs.prepare import in_steps
from mft_ray.runs.records import Trial
from mft_ray.runs.session import Session, session
from mft_ray.runs.settled import begun_trials
from mft_ray.searches.budget import Budget
from mft_ray.searches.checks import check_search
from mft_ray.searches.leaderboard import write_results
from mft_ray.searches.progress import TrialProgress
from mft_ray.searches.trial import TrialPlan
from mft_ray.searches.tuner import run_trials
from mft_ray.tracking.follow import followed
from mft_ray.training.stopping import AgainstFft
from mft_ray.utils.console import log, log_warning
from mft_ray.utils.formatting import unit
from mft_ray.verdict.judge import judge_winner
from mft_ray.verdict.test_looks import chosen_by_person
from mft_ray.verdict.winner import keep_winner


def search(
    config: Config | None, resume: str | None = None, look_again: bool = False, pick: str | None = None
) -> RunFolder:
    """Run a search from backbone to verdict, go on with an interrupted one, or add trials to a finished one.

    Args:
        config: configuration of a new search, or the changed one of a search to go on with.
        resume: folder of the search to go on with, whose own configuration is used if no other is given.
        look_again: the test examples may be looked at for another trial than before.
        pick: trial of the search to go on with that is judged, and left in ``best/``, in the place of the best on
            validation. No trial begins then, and the test examples are looked at again if they were before.

    Raises:
        UserError: something given cannot work, or is not what the run was begun with; nothing was then written.
    """
    with session(config, resume, check_search) as run, followed(run.config, run.folder):
        outlook = Outlook()
        with cluster_noted(run.folder), drawn(run.folder.root, outlook):
            _run(replace(run, config=in_steps(run.config, run.folder)), look_again, pick, outlook)
        tell(run.folder.root)
    return run.folder


def _run(run: Session, look_again: bool, pick: str | None, outlook: Outlook) -> None:
    config, folder = run.config, run.folder
    shown = unit(config.evaluation.metric)
    log(f"run folder {folder.root}")
    log("1/4 FFT baseline: " + ("given" if config.fft.given else "training until validation stops improving"))
    run.settled.begin("baseline")
    with at_work(config, folder, run.start) as its:
        baseline = fft_baseline(its)
    log(f"FFT baseline: {shown.score(baseline.score)} on validation ({shown.label})")

    if pick is None:
        trials, chosen = _searched(run, baseline, outlook), chosen_by_person(folder)
    else:
        trials, chosen = write_results(folder, baseline, config.search.keep), picked(folder.root, pick).trial.trial_id
    if not trials or trials[0].watched is None:
        render(folder.root)
        raise UserError(
            f"No trial of {folder.root} reached its masking ratio and a score, so there is nothing to judge: "
            f"{_reasons(trials)}. See report.html there."
        )
    log("3/4 verdict: one look at the untouched test examples")
    if chosen is not None:
        log(f"trial {chosen} is judged, as a person has picked it")
    for prefix, begun in (("fft.continued_lr", folder.continued), ("lora.", folder.rivals / "lora")):
        if prefix in run.settled.reopened:
            shutil.rmtree(begun, ignore_errors=True)  # what was begun with other settings is not gone on with
    run.settled.begin("verdict")
    verdict = judge_winner(run, baseline, trials, look_again or pick is not None, chosen)

    log("4/4 mask, model and report")
    [winner] = [trial for trial in trials if trial.trial_id == verdict.trial_id]
    keep_winner(folder, config, baseline, winner, verdict.sentence or "")
    write_results(folder, baseline, config.search.keep)
    render(folder.root)


def _searched(run: Session, baseline: FftModel, outlook: Outlook) -> list[Trial]:
    """Run the trials that there are to be; return those of the leaderboard."""
    config, folder, search = run.config, run.folder, run.config.search
    steps = METHODS[search.method].recipe(config).train.steps
    begun = begun_trials(folder)
    log(
        f"2/4 search: {search.trials} trials of at most {steps} steps, {run.concurrent} at a time"
        + (f"; {begun} have begun already" if begun else "")
    )
    run.settled.begin("trials")
    plan = TrialPlan(
        config,
        str(folder.root),
        baseline.model,
        baseline.fingerprint,
        baseline.pretrained,
        baseline.scores,
        AgainstFft(search.stop),
    )
    keep_results = partial(write_results, folder, baseline, search.keep)
    keep_results()
    progress = TrialProgress(
        search.trials,
        steps,
        run.concurrent,
        config.evaluation,
        baseline.score,
        baseline.watched,
        folder,
        keep_results,
        outlook,
    )
    try:
        run_trials(plan, folder, baseline.depth, run.concurrent, progress)
    except (KeyboardInterrupt, RunFailed):
        if any(trial.watched is not None for trial in keep_results()):
            log(f"report so far: {render(folder.root)}")
        raise
    finally:
        outlook.left = outlook.waits = ""
    missing = search.trials - begun_trials(folder)
    if asked_to_end(folder):
        log_warning(f"a person has ended the search; {missing} of {search.trials} trials have not begun")
    if waiting := queue(folder):
        log_warning(
            f"{len(waiting)} configurations were asked for and not tried: raise search.trials for them, with --resume"
        )
    if limit := Budget(search.budget, folder.work).reached():
        more = f"; {missing} of {search.trials} trials have not begun, for which search.budget must be raised"
        log_warning(f"the budget is spent ({limit}){more if missing else ''}: the verdict is on what there is")
    return keep_results()


def _reasons(trials: list[Trial]) -> str:
    reasons = sorted({trial.error or str(trial.stopped_reason) for trial in trials})
    return "; ".join(reasons) or "no trial ran"
