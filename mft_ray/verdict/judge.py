"""The one look at the test examples: FFT, continued FFT and the winner, and what their scores show."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mft_ray.baselines.fft import continued_fft, described
from mft_ray.baselines.rivals import best_rival
from mft_ray.data.store import shared_sources
from mft_ray.errors import RunFailed, told
from mft_ray.runs import records
from mft_ray.runs.candidates import Candidate, candidate_from
from mft_ray.runs.context import RunContext, at_work
from mft_ray.runs.fft_model import FftModel
from mft_ray.runs.records import MetricComparison, SeedSpread, Selection, SplitScore, Trial, Verdict
from mft_ray.runs.session import Session
from mft_ray.runs.task_scores import score_on_tasks
from mft_ray.training.job import Outcome
from mft_ray.utils.console import log, log_warning
from mft_ray.verdict.decision import CONTINUED, SEEDS, Evidence, Rules, compare, judge, warn
from mft_ray.verdict.discordant import Pair, keep_task_examples, keep_test_examples
from mft_ray.verdict.seeds import over_seeds
from mft_ray.verdict.test_looks import kept_verdict, look, looks


@dataclass(frozen=True)
class Scored:
    """What a verdict is made from, as far as it could be run.

    Attributes:
        fft: the FFT model.
        mft: the winner.
        candidates: both, and what else they are held against.
        test: by metric and name, one score for each test example.
        validation: by name, one score for each validation example.
        rival: method and name of the best rival.
        seeds: same as in `mft_ray.verdict.seeds.spread`; None with one seed.
        not_run: what could not be run, and why.
    """

    fft: Candidate
    mft: Candidate
    candidates: Sequence[Candidate]
    test: Mapping[str, Mapping[str, list[float]]]
    validation: Mapping[str, list[float]]
    rival: tuple[str, str] | None
    seeds: SeedSpread | None
    not_run: Mapping[str, str]


def judge_winner(
    session: Session, baseline: FftModel, trials: Sequence[Trial], again: bool = False, chosen: str | None = None
) -> Verdict:
    """Score FFT, continued FFT and the winner on test, once, and write what that shows.

    Where continued FFT, a rival or another seed cannot be run, the verdict is on what there is and says so.

    Args:
        session: run, and how many models may be evaluated on benchmark tasks at once.
        baseline: FFT model.
        trials: rows of the leaderboard, the best on validation first.
        again: whether the test examples may be looked at although they were for another trial.
        chosen: identifier of the trial that a person has picked in the place of the first.

    Returns:
        The verdict; what is there already is not judged again, unless something could not be run.

    Raises:
        UserError: the test examples were looked at for another trial, and that verdict is gone.
        RunFailed: FFT or the winner could not be scored.
    """
    config, folder = session.config, session.folder
    [winner] = [trial for trial in trials if trial.trial_id == (chosen or trials[0].trial_id)]
    if (kept := kept_verdict(folder, winner.trial_id, again)) is not None:
        if kept.trial_id != winner.trial_id or not kept.not_run:
            return kept
        log(f"the verdict was made without {', '.join(kept.not_run)}: that is tried again")
    with at_work(config, folder, session.start) as run:
        earlier = look(folder, winner.trial_id)
        scored = _scored(run, baseline, winner)
    metric = config.evaluation.metric
    decisive = scored.test[metric]
    alone = Rules(config.evaluation.resamples, config.verdict.real_test)
    rules = replace(alone, sources=shared_sources(folder.data, "test"))
    on_tasks = _on_tasks(scored, session, alone)
    others = config.evaluation.other_tasks
    extra = [_extra(name, by_name, rules) for name, by_name in scored.test.items() if name != metric]
    extra += [each for task, each in on_tasks if task not in others]
    evidence = Evidence(
        metric,
        decisive["mft"],
        decisive["fft"],
        decisive.get("continued"),
        rival=(scored.rival[0], decisive[scored.rival[1]]) if scored.rival else None,
        method=config.search.method,
        seeds=scored.seeds,
        other_tasks=warn([each for task, each in on_tasks if task in others]),
        earlier_looks=len(earlier),
        not_run=scored.not_run,
    )
    verdict = judge(evidence, rules)
    verdict.trial_id, verdict.looks, verdict.extra = winner.trial_id, looks(folder), extra
    chosen_from = len(scored.validation["fft"])
    by_person = winner != trials[0]
    verdict.selection = Selection(
        split="validation", n=chosen_from, metric=metric, trials=len(trials), by_person=by_person
    )
    _complete_baseline(session, decisive, scored.validation)
    if kept is not None:
        shutil.rmtree(folder.best, ignore_errors=True)  # its card has the sentence of that verdict
    verdict.save(folder.verdict)
    return verdict


def _scored(run: RunContext, baseline: FftModel, winner: Trial) -> Scored:
    """Train what the winner is held against and score all; what was trained or scored before is not again."""
    fft = Candidate("fft", baseline.model)
    mft = candidate_from(run.folder.trial(winner.trial_id), "mft", baseline.model, baseline.pretrained)
    rival, failed = best_rival(run, baseline)
    not_run = {f"rival {method}": why for method, why in failed.items()}
    candidates, validation = [fft, mft], {"fft": run.score(fft, "validation")}
    try:
        continued = continued_fft(run, baseline, winner.tokens or 0)
        validation["continued"] = run.score(continued, "validation")
        run.score_on_test([continued])
        candidates.insert(0, continued)
    except RunFailed as error:
        not_run[CONTINUED] = str(error.__cause__ or error)
        reason = told(not_run[CONTINUED], error.traceback_file).rstrip(".")
        log_warning(f"continued FFT could not be run: {reason}. The verdict goes on without it.")
    if rival:
        try:
            run.score_on_test([rival[1]])
            candidates.append(rival[1])
        except RunFailed as error:
            not_run[f"rival {rival[0]}"] = str(error)
            log_warning(f"{error.told.rstrip('.')}. The verdict goes on without it.")
            rival = None
    test = run.score_on_test(candidates)
    decisive = test[run.config.evaluation.metric]
    keep_test_examples(run, Pair(fft, mft, (decisive["fft"], decisive["mft"])))
    seeds, why = over_seeds(run, winner, decisive)
    if why:
        not_run[SEEDS] = why
    named = (rival[0], rival[1].name) if rival else None
    return Scored(fft, mft, candidates, test, validation, named, seeds, not_run)


def _on_tasks(scored: Scored, session: Session, rules: Rules) -> list[tuple[str, MetricComparison]]:
    """Score models on the benchmark tasks, keep the examples on which two differ, and return a row for each metric."""
    rows = []
    found = score_on_tasks(session, scored.candidates) if session.config.tasks else {}
    for (task, name), by_name in found.items():
        pair = Pair(scored.fft, scored.mft, (by_name["fft"], by_name["mft"]))
        keep_task_examples(pair, task, name, session.folder)
        rows.append((task, _extra(f"{task}: {name}", by_name, rules)))
    return rows


def _extra(name: str, scores: Mapping[str, list[float]], rules: Rules) -> MetricComparison:
    continued = scores.get("continued")
    mean = sum(continued) / len(continued) if continued else None
    return compare(name, scores["mft"], scores["fft"], rules).model_copy(update={"continued": mean})


def _complete_baseline(
    session: Session, test: Mapping[str, list[float]], validation: Mapping[str, list[float]]
) -> None:
    config, folder = session.config, session.folder
    record = records.Baseline.load(folder.baseline)
    record.test, record.continued = SplitScore.of(test["fft"]), None
    if "continued" in test:
        known = described(Outcome.load(folder.continued / "outcome.json"))
        record.continued = known.model_copy(
            update={
                "metric": config.evaluation.metric,
                "validation": SplitScore.of(validation["continued"]),
                "test": SplitScore.of(test["continued"]),
            }
        )
    record.save(folder.baseline)
