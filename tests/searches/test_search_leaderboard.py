"""The leaderboard, from what trials left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mft_ray.runs import records
from mft_ray.runs.fft_model import FftModel
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.records import SplitScore
from mft_ray.searches.leaderboard import write_results
from mft_ray.training.job import Evaluation, Outcome, StopReason
from mft_ray.utils.files import write_json
from mft_ray.verdict.test_looks import look

BASELINE = FftModel(
    model="fft", fingerprint="", depth=2, score=0.5, standard_error=0.01, watched=0.5, scores="scores.json"
)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    validation = SplitScore(score=0.5, n=40)
    records.Baseline(method="fft", metric="exact_match", validation=validation).save(tmp_path / "baseline.json")
    return RunFolder(tmp_path)


def trial(folder: RunFolder, name: str, score: float | None, ratio: float, ended: bool = True) -> None:
    path = folder.trial(name)
    path.mkdir(parents=True)
    write_json(path / "config.json", {"ratio": ratio})
    (path / "mask.safetensors").touch()
    if ended and score is None:
        write_json(path / "error.json", {"error": "it broke"})
    elif ended:
        row = Evaluation(10, score or 0.0, 0.01, 100, 1.0, 0.1, ratio, True)
        Outcome(StopReason.COMPLETED, [row], 0, score).save(path / "outcome.json")


def masks(folder: RunFolder) -> set[str]:
    return {path.parent.name for path in folder.trials.glob("*/mask.safetensors")}


def rows(folder: RunFolder) -> list[dict[str, Any]]:
    trials: list[dict[str, Any]] = json.loads(folder.leaderboard.read_text())["trials"]
    return trials


def test_masks_of_the_best_and_of_trials_at_work_stay(folder: RunFolder) -> None:
    for name, score in (("a", 0.4), ("b", 0.6), ("c", 0.5), ("d", 0.3), ("e", None)):
        trial(folder, name, score, 0.1)
    trial(folder, "f", None, 0.1, ended=False)
    write_results(folder, BASELINE, keep=2)
    assert [row["trial_id"] for row in rows(folder)][:4] == ["b", "c", "a", "d"]
    assert masks(folder) == {"b", "c", "f"}


def test_fewer_trials_than_masks_to_keep_lose_none(folder: RunFolder) -> None:
    trial(folder, "a", 0.4, 0.1)
    write_results(folder, BASELINE, keep=5)
    assert masks(folder) == {"a"}


def test_a_trial_that_was_judged_keeps_its_mask_and_comes_first_among_equals(folder: RunFolder) -> None:
    folder.work.mkdir()
    trial(folder, "judged", 0.6, 0.1)
    look(folder, "judged")
    trial(folder, "equal", 0.6, 0.1)
    write_results(folder, BASELINE, keep=1)
    assert [row["trial_id"] for row in rows(folder)] == ["judged", "equal"]
    trial(folder, "better", 0.7, 0.1)
    write_results(folder, BASELINE, keep=1)
    assert [row["trial_id"] for row in rows(folder)] == ["better", "judged", "equal"]
    assert masks(folder) == {"better", "judged"}


def test_the_pareto_front_is_what_nothing_beats_in_score_and_ratio(folder: RunFolder) -> None:
    # name, score, ratio: c is beaten by b in both, e is level with a in score and removes fewer, f twins b.
    points = [("a", 0.6, 0.1), ("b", 0.5, 0.3), ("c", 0.4, 0.2), ("d", 0.1, 0.5), ("e", 0.6, 0.05), ("f", 0.5, 0.3)]
    for name, score, ratio in points:
        trial(folder, name, score, ratio)
    trial(folder, "failed", None, 0.9)
    write_results(folder, BASELINE, keep=9)
    assert {row["trial_id"] for row in rows(folder) if row["pareto"]} == {"a", "b", "d", "f"}
