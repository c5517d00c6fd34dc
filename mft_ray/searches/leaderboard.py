"""The leaderboard and the curves, gathered from what each run of the training loop left behind."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from mft_ray.models.artifacts import drop_artifact
from mft_ray.runs import records
from mft_ray.runs.fft_model import FftModel
from mft_ray.runs.folder import RunFolder, has_ended
from mft_ray.runs.records import Curves, Leaderboard, Point, Trial
from mft_ray.training.job import Outcome, StopReason
from mft_ray.utils.files import Signature, read_json, signature
from mft_ray.verdict.test_looks import looks

# Of so many trainings it is kept what their files say: it is written anew after every trial.
_KEPT = 10_000


def write_results(folder: RunFolder, baseline: FftModel, keep: int) -> list[Trial]:
    """Write ``leaderboard.json``, best trial first, and ``curves.json``; return the leaderboard's trials.

    Trials that have only been scored by the metric that training is watched by come after those that have a score.

    Args:
        folder: folder of the run.
        baseline: what trials are held against.
        keep: so many trials keep their mask, adapter or model, and any that the test examples were looked at for; those
            of other ended ones are deleted.
    """
    _write_curves(folder)
    trials = [_trial(path, baseline.score) for path in sorted(folder.trials.glob("*/config.json"))]
    judged = {look.trial_id for look in looks(folder)}
    trials.sort(key=lambda trial: _rank(trial, judged))
    _mark_pareto_front(trials)
    for trial in trials[keep:]:
        out = folder.trial(trial.trial_id)
        if has_ended(out) and trial.trial_id not in judged:
            drop_artifact(out)
    Leaderboard(baseline=records.Baseline.load(folder.baseline), trials=trials).save(folder.leaderboard)
    return trials


def _rank(trial: Trial, judged: set[str]) -> tuple[bool, float, bool, float, bool, str]:
    """Return what trials are sorted by. Of equals the first is what was judged: no other is better than that."""
    score, watched = trial.score, trial.watched
    of_score, of_watched = (score is None, -(score or 0.0)), (watched is None, -(watched or 0.0))
    return *of_score, *of_watched, trial.trial_id not in judged, trial.trial_id


def _mark_pareto_front(trials: list[Trial]) -> None:
    """Mark the trials that no other one beats in score without removing fewer weights, or the reverse."""
    scored = [(trial.score, trial.ratio) for trial in trials if trial.score is not None]
    for trial in trials:
        score, ratio = trial.score, trial.ratio
        trial.pareto = score is not None and not any(
            other >= score and its_ratio >= ratio and (other, its_ratio) != (score, ratio)
            for other, its_ratio in scored
        )


def _write_curves(folder: RunFolder) -> None:
    Curves(
        fft=_curve(folder.fft / "outcome.json"),
        continued=_curve(folder.continued / "outcome.json"),
        trials={path.parent.name: _curve(path) for path in sorted(folder.trials.glob("*/outcome.json"))},
    ).save(folder.curves)


def _trial(config: Path, fft_score: float) -> Trial:
    files = tuple(config.with_name(name) for name in ("config.json", "outcome.json", "error.json"))
    return _read_trial(files, tuple(map(signature, files)), fft_score).model_copy()


@lru_cache(_KEPT)
def _read_trial(files: tuple[Path, ...], signed: tuple[Signature | None, ...], fft_score: float) -> Trial:
    config, outcome_path, error_path = files
    reason = StopReason.FAILED if error_path.exists() else StopReason.CANCELLED
    trial = Trial(trial_id=config.parent.name, config=read_json(config, dict), status=reason, stopped_reason=reason)
    if outcome_path.exists():
        outcome = Outcome.load(outcome_path)
        best, last = outcome.best_evaluation, outcome.history[-1]
        completed = outcome.stopped_reason == StopReason.COMPLETED
        trial.status, trial.stopped_reason = "completed" if completed else "stopped", outcome.stopped_reason
        trial.step, trial.steps = best.step if best else last.step, last.step
        trial.tokens, trial.seconds, trial.cost = last.tokens, last.seconds, outcome.cost
        trial.stop = outcome.stop
        trial.watched = outcome.watched
        if outcome.score is not None:
            trial.score, trial.delta_fft = outcome.score, outcome.score - fft_score
    elif error_path.exists():
        trial.error = read_json(error_path, lambda content: str(content["error"]))
    return trial


def _curve(path: Path) -> list[Point]:
    return _read_curve(path, signature(path))


@lru_cache(_KEPT)
def _read_curve(path: Path, signed: Signature | None) -> list[Point]:
    return [] if signed is None else [Point.of(evaluation) for evaluation in Outcome.load(path).history]
