"""The leaderboard and the curves, gathered from what each run of the training loop left behind."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from mft_ray.models.artifacts import drop_artifact
from mft_ray.runs.fft_model import Baseline
from mft_ray.runs.folder import RunFolder
from mft_ray.training.job import Evaluation, Outcome, StopReason
from mft_ray.utils.files import read_json, write_json
from mft_ray.verdict.test_looks import looks


def write_results(folder: RunFolder, baseline: Baseline, keep: int) -> list[dict[str, Any]]:
    """Write ``leaderboard.json``, best trial first, and ``curves.json``; return the leaderboard's rows.

    Trials that have only been scored by the metric that training is watched by come after those that have a score.

    Args:
        folder: of the run.
        baseline: what trials are held against.
        keep: so many trials keep their mask, adapter or model, and any that the test examples were looked at for; those
            of other ended ones are deleted.
    """
    _write_curves(folder)
    rows = [_row(path, baseline.score) for path in sorted(folder.trials.glob("*/config.json"))]
    judged = {look["trial_id"] for look in looks(folder)}
    rows.sort(key=lambda row: _rank(row, judged))
    _mark_pareto_front(rows)
    for row in rows[keep:]:
        trial = folder.trial(row["trial_id"])
        ended = (trial / "outcome.json").exists() or (trial / "error.json").exists()
        if ended and trial.name not in judged:
            drop_artifact(trial)
    public = read_json(folder.baseline, dict)
    write_json(folder.leaderboard, {"baseline": public, "trials": rows})
    return rows


def _rank(row: dict[str, Any], judged: set[str]) -> tuple[Any, ...]:
    """Return what rows are sorted by. Of equals the first is what was judged: no other is better than that."""
    scores = [(row[key] is None, -(row[key] or 0.0)) for key in ("score", "watched")]
    return *scores, row["trial_id"] not in judged


def _mark_pareto_front(rows: list[dict[str, Any]]) -> None:
    """Mark the trials that no other one beats in score without removing fewer weights, or the reverse."""
    for row in rows:
        score, ratio = row["score"], _ratio(row)
        row["pareto"] = score is not None and not any(
            other["score"] >= score and _ratio(other) >= ratio and (other["score"], _ratio(other)) != (score, ratio)
            for other in rows
            if other["score"] is not None
        )


def _ratio(row: dict[str, Any]) -> float:
    """Return how much a trial masks; a method without masks has nothing to choose between."""
    return float(row["config"].get("ratio", 0.0))


def _write_curves(folder: RunFolder) -> None:
    trials = {path.parent.name: _curve(path) for path in sorted(folder.trials.glob("*/outcome.json"))}
    curves = {
        "fft": _curve(folder.fft / "outcome.json"),
        "continued": _curve(folder.continued / "outcome.json"),
        "trials": trials,
    }
    write_json(folder.curves, curves)


def _row(config: Path, fft_score: float) -> dict[str, Any]:
    trial, outcome_path, error_path = (
        config.parent,
        config.with_name("outcome.json"),
        config.with_name("error.json"),
    )
    row: dict[str, Any] = {
        "trial_id": trial.name,
        "config": read_json(config, dict),
        "step": None,
        "score": None,
        "delta_fft": None,
        "watched": None,
        "status": StopReason.FAILED if error_path.exists() else StopReason.CANCELLED,
        "stopped_reason": StopReason.FAILED if error_path.exists() else StopReason.CANCELLED,
        "seconds": None,
    }
    if outcome_path.exists():
        outcome = Outcome.load(outcome_path)
        best, last = outcome.best_evaluation, outcome.history[-1]
        row.update(
            status="stopped" if outcome.stopped_reason != StopReason.COMPLETED else "completed",
            stopped_reason=outcome.stopped_reason,
            step=best.step if best else last.step,
            steps=last.step,
            tokens=last.tokens,
            seconds=last.seconds,
            cost=asdict(outcome.cost) if outcome.cost else None,
        )
        if best:
            row["watched"] = best.score
        if outcome.score is not None:
            row.update(score=outcome.score, delta_fft=outcome.score - fft_score)
    elif error_path.exists():
        row["error"] = read_json(error_path, lambda content: str(content["error"]))
    return row


def _curve(path: Path) -> list[dict[str, Any]]:
    return [_point(evaluation) for evaluation in Outcome.load(path).history] if path.exists() else []


def _point(evaluation: Evaluation) -> dict[str, Any]:
    row = asdict(evaluation)
    return {name: row[name] for name in ("step", "score", "ratio", "seconds", "tokens", "loss")}
