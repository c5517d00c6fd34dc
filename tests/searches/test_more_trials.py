"""A search that is given other numbers of trials than it began with: in the middle, and when it is finished."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import FrozenTrial, TrialState

from mft_ray.config import parse_config
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.study.file import STUDY_NAME
from mft_ray.searches.pipeline import search
from mft_ray.searches.progress import TrialProgress

pytestmark = pytest.mark.slow


class Sessions:
    """One run over several sessions.

    Attributes:
        folder: of the run.
        said: what each session printed.
    """

    def __init__(self, folder: RunFolder, capture: Callable[[], str]) -> None:
        self.folder, self.capture, self.said = folder, capture, list[str]()

    def go_on(self, look_again: bool = False, **settings: Any) -> str:
        """Resume with some settings of the search changed."""
        tree = yaml.safe_load(self.folder.config.read_text())
        tree["search"] |= settings
        search(parse_config(tree), str(self.folder.root), look_again)
        self.said.append(self.capture())
        return self.said[-1]

    @property
    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(self.folder.leaderboard.read_text())["trials"]
        return rows

    @property
    def trials(self) -> list[FrozenTrial]:
        return optuna.load_study(study_name=STUDY_NAME, storage=f"sqlite:///{self.folder.study}").trials

    @property
    def verdict(self) -> dict[str, Any]:
        verdict: dict[str, Any] = json.loads(self.folder.verdict.read_text())
        return verdict


@pytest.fixture
def run(ray_cluster: None, tiny: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Sessions:
    """A search of 50 random trials, one at a time, that got a Ctrl-C when its first trial had ended."""
    tiny["run"]["dir"] = str(tmp_path / "run")
    tiny["search"] = {"trials": 50, "max_concurrent": 1, "sampler": "random", "stop": {"below_fft": False}}
    with pytest.MonkeyPatch.context() as patch:
        original = TrialProgress.on_trial_complete

        def interrupted(self: TrialProgress, *rest: Any, **info: Any) -> None:
            original(self, *rest, **info)
            os.kill(os.getpid(), signal.SIGINT)

        patch.setattr(TrialProgress, "on_trial_complete", interrupted)
        with pytest.raises(KeyboardInterrupt):
            search(parse_config(tiny))
    return Sessions(RunFolder(tmp_path / "run"), lambda: capfd.readouterr().out)


def test_trials_are_lowered_raised_and_judged_again(run: Sessions) -> None:
    begun = {path.name for path in run.folder.trials.iterdir()}
    assert 1 <= len(begun) <= 2
    run.capture()

    # Lowered in the middle, and now two at a time.
    said = run.go_on(trials=3, max_concurrent=2)
    assert "3 trials of at most 30 steps, 2 at a time; " in said
    assert "trial 3/3 ends" in said
    assert {row["trial_id"] for row in run.rows} > begun
    assert len(run.rows) == 3
    first = run.verdict
    best = (run.folder.best / "config.yaml").read_text()

    # Raised when it was finished.
    outcomes = {path: path.stat().st_mtime_ns for path in run.folder.trials.glob("*/outcome.json")}
    said = run.go_on(trials=5, keep=2)
    assert "5 trials of at most 30 steps, 2 at a time; 3 have begun already" in said
    assert "trial 4/5 starts" in said
    assert "trial 5/5 starts" in said
    assert "trial 3/5 starts" not in said
    assert outcomes.items() <= {p: p.stat().st_mtime_ns for p in run.folder.trials.glob("*/outcome.json")}.items()
    assert len(run.rows) == 5
    told = [trial for trial in run.trials if trial.state == TrialState.COMPLETE or trial.state == TrialState.PRUNED]
    assert len(told) == 5
    assert TrialState.RUNNING not in {trial.state for trial in run.trials}
    assert sorted(json.dumps(trial.params, sort_keys=True) for trial in told) == sorted(
        json.dumps(row["config"], sort_keys=True) for row in run.rows
    )
    assert len({trial.params["lr"] for trial in run.trials}) == len({json.dumps(trial.params) for trial in run.trials})
    assert len({row["config"]["ratio"] for row in run.rows}) == 5
    assert set(json.loads(run.folder.curves.read_text())["trials"]) == {row["trial_id"] for row in run.rows}
    assert yaml.safe_load(run.folder.config.read_text())["search"]["trials"] == 5
    report = (run.folder.root / "report.html").read_text()
    assert all(row["trial_id"] in report for row in run.rows)

    # Another trial is best now: the verdict stays until it is asked for another.
    other = _make_best(run, first["trial_id"])
    said = run.go_on()
    assert f"trial {other} is now best on validation, but the test examples were looked at" in said
    assert run.verdict["trial_id"] == first["trial_id"]
    assert (run.folder.best / "config.yaml").read_text() == best
    run.go_on(look_again=True)
    assert run.verdict["trial_id"] == other
    assert [look["trial_id"] for look in run.verdict["looks"]] == [first["trial_id"], other]
    assert yaml.safe_load((run.folder.best / "config.yaml").read_text())["trial_id"] == other
    mask = (run.folder.best / "mask.safetensors").read_bytes()
    assert mask == (run.folder.trial(other) / "mask.safetensors").read_bytes()

    # A budget that is spent ends it, however many trials there are to be.
    said = run.go_on(trials=9, budget={"tokens": 1})
    assert "the budget is spent (1 tokens); 4 of 9 trials have not begun" in said
    assert len(run.rows) == 5
    assert run.verdict["trial_id"] == other


def _make_best(run: Sessions, judged: str) -> str:
    """Let a trial that keeps its mask have the best score; return its id."""
    row = next(row for row in run.rows if row["trial_id"] != judged and (_mask(run, row["trial_id"])).exists())
    path = run.folder.trial(row["trial_id"]) / "outcome.json"
    outcome = json.loads(path.read_text())
    path.write_text(json.dumps({**outcome, "score": 0.99}))
    return str(row["trial_id"])


def _mask(run: Sessions, trial: str) -> Path:
    return run.folder.trial(trial) / "mask.safetensors"
