"""A search whose metric generates: training is watched by one forward per example, trials are decided by generation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from mft_ray.config import EvaluationConfig
from mft_ray.report.html import render
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.study.file import STUDY_NAME
from mft_ray.searches.pipeline import search
from mft_ray.training.job import Outcome


@pytest.mark.parametrize(
    ("metric", "asked", "watched"),
    [
        ("generated_match", None, "answer_logprob"),
        ("generated_match", "generated_match", "generated_match"),
        ("exact_match", None, "exact_match"),
        ("exact_match", "answer_logprob", "answer_logprob"),
    ],
)
def test_training_is_watched_by_one_forward_unless_asked_otherwise(metric: Any, asked: Any, watched: str) -> None:
    assert EvaluationConfig(metric=metric, while_training=asked).monitor == watched


@pytest.fixture(scope="module")
def run(lora_run: RunFolder) -> RunFolder:
    return lora_run


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.slow
def test_fft_and_trials_are_scored_by_both_metrics(run: RunFolder) -> None:
    baseline, rows = read(run.baseline), read(run.leaderboard)["trials"]
    assert (baseline["metric"], baseline["watched"]["metric"]) == ("generated_match", "answer_logprob")
    assert 0 <= baseline["validation"]["score"] <= 1
    assert baseline["watched"]["validation"]["score"] < 0  # a log-probability
    assert len(rows) == 3
    for row in rows:
        outcome = Outcome.load(run.trial(row["trial_id"]) / "outcome.json")
        assert outcome.best_evaluation
        assert row["score"] == outcome.score
        assert row["watched"] == outcome.best_evaluation.score < 0
        assert row["score"] * 40 == round(row["score"] * 40)  # right or wrong, of 40 examples
        assert row["delta_fft"] == pytest.approx(row["score"] - baseline["validation"]["score"])
    assert rows == sorted(rows, key=lambda row: (-row["score"], -row["watched"]))
    assert read(run.verdict)["metric"] == "generated_match"
    assert read(run.verdict)["trial_id"] == rows[0]["trial_id"]


@pytest.mark.slow
def test_the_study_learns_what_decides_and_nothing_else(run: RunFolder) -> None:
    study = optuna.load_study(study_name=STUDY_NAME, storage=f"sqlite:///{run.study}")
    scores = sorted(row["score"] for row in read(run.leaderboard)["trials"])
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 3
    assert sorted(trial.value or 0.0 for trial in study.trials) == scores
    assert all(not trial.intermediate_values for trial in study.trials)


@pytest.mark.slow
def test_curves_are_drawn_in_the_metric_they_are_in(run: RunFolder) -> None:
    report = render(run.root).read_text()
    assert "Log-probability per answer token" in report
    assert "Generated answers correct" in report


@pytest.mark.slow
def test_a_second_look_has_to_be_asked_for_and_is_said(run: RunFolder) -> None:
    best, other = (row["trial_id"] for row in read(run.leaderboard)["trials"][:2])
    # As if the trial that is best now had come after the verdict, once the budget was raised.
    for path in (run.looks, run.verdict):
        path.write_text(path.read_text().replace(best, other))
    search(None, str(run.root))
    assert read(run.verdict)["trial_id"] == other
    search(None, str(run.root), look_again=True)
    verdict = read(run.verdict)
    assert verdict["trial_id"] == best
    assert [look["trial_id"] for look in verdict["looks"]] == [other, best]
    assert "This was look 2 at the test examples" in verdict["sentence"]
    assert "This was look 2" in (run.best / "README.md").read_text()
    assert "looked at 2 times" in (run.root / "report.html").read_text()
