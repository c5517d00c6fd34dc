"""A run folder as it is while a search goes on."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from mft_ray.config import parse_config
from mft_ray.errors import UserError
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.live.snapshot import Phase, read_live, state_of
from mft_ray.training.job import Evaluation


@pytest.fixture
def folder(tmp_path: Path, tiny: dict[str, Any]) -> RunFolder:
    """A run folder whose search has just begun."""
    folder = RunFolder(tmp_path / "run")
    folder.work.mkdir(parents=True)
    parse_config(tiny).save(folder.config)
    return folder


def progress(out: Path, *scores: float) -> None:
    out.mkdir(parents=True, exist_ok=True)
    history = [
        asdict(Evaluation(10 * step, score, 0.01, step, 1.0, 0.5, 0.2, True)) for step, score in enumerate(scores)
    ]
    text = json.dumps({"steps": 30, **history[-1], "history": history}).replace("NaN", "null")
    (out / "progress.json").write_text(text)


def baseline(folder: RunFolder, score: float) -> None:
    record = {"metric": "exact_match", "validation": {"score": score, "n": 40}, "model": "fft"}
    folder.baseline.write_text(json.dumps(record))
    folder.leaderboard.write_text(json.dumps({"trials": []}))
    folder.fft_model.write_text("{}")


def test_before_there_is_a_baseline(folder: RunFolder) -> None:
    live = read_live(folder.root)
    assert (live.phase, live.working, live.run.trials, live.log) == (Phase.DATA, False, [], [])
    assert live.run.baseline.validation.score is None
    (folder.data / "train").mkdir(parents=True)
    progress(folder.fft, 0.1, 0.2)
    folder.log.write_text("2026-01-01 10:00:00 one\n2026-01-01 10:00:01 two\n")
    live = read_live(folder.root)
    assert live.phase is Phase.FFT
    assert [point.score for point in live.run.curves.fft] == [0.1, 0.2]
    assert live.log[-1].endswith("two")


def test_trials_at_work_stand_where_their_best_so_far_puts_them(folder: RunFolder) -> None:
    baseline(folder, 0.5)
    ended = {"trial_id": "a", "config": {"ratio": 0.1}, "score": 0.55, "status": "completed"}
    # What a search writes of a trial that has not ended.
    begun = {"trial_id": "b", "config": {"ratio": 0.2}, "status": "cancelled", "stopped_reason": "cancelled"}
    folder.leaderboard.write_text(json.dumps({"trials": [ended, begun]}))
    for name, ratio in (("a", 0.1), ("b", 0.2), ("c", 0.3)):
        folder.trial(name).mkdir(parents=True)
        (folder.trial(name) / "config.json").write_text(json.dumps({"ratio": ratio}))
    (folder.trial("a") / "outcome.json").write_text("{}")
    progress(folder.trial("b"), 0.5, 0.6, 0.58)
    with FileLock(folder.work / "lock"):
        live = read_live(folder.root)
    assert live.phase is Phase.TRIALS
    assert live.running == {"b", "c"}
    shown = [(trial.trial_id, trial.score, trial.stopped_reason) for trial in live.run.trials]
    assert shown == [("b", 0.6, "running"), ("a", 0.55, None), ("c", None, "running")]
    assert live.run.trials[0].delta_fft == pytest.approx(0.1)
    assert [point.step for point in live.run.curves.trials["b"]] == [0, 10, 20]
    # When nobody works on it any more they are not running, whatever is left to do.
    assert {trial.stopped_reason for trial in read_live(folder.root).run.trials} == {"interrupted", None}


def test_a_trial_watched_by_another_metric_has_no_score_yet(folder: RunFolder) -> None:
    tree = yaml.safe_load(folder.config.read_text())
    tree["evaluation"] |= {"metric": "generated_match"}
    folder.config.write_text(yaml.safe_dump(tree))
    folder.trial("b").mkdir(parents=True)
    (folder.trial("b") / "config.json").write_text('{"ratio": 0.2}')
    progress(folder.trial("b"), -0.5, -0.4)
    live = read_live(folder.root)
    assert [trial.score for trial in live.run.trials] == [None]
    assert live.run.while_training.baseline.metric == "answer_logprob"


def test_its_state_changes_with_whatever_is_shown(folder: RunFolder) -> None:
    before = state_of(folder.root)
    assert state_of(folder.root) == before
    progress(folder.fft, 0.1)
    after = state_of(folder.root)
    assert after != before
    with FileLock(folder.work / "lock"):
        assert state_of(folder.root) != after


def test_what_is_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not the folder of a run"):
        read_live(tmp_path)
