"""A search with its run folder on storage as several hosts share it: killed, resumed, nothing lost or repeated."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
import shared_storage
import small_searches
import yaml
from optuna.trial import TrialState

from mft_ray.runs.study.file import STUDY_NAME, open_copy

pytestmark = pytest.mark.slow

TRIALS = 4


@dataclass
class Ended:
    """The search.

    Attributes:
        behind: folder of the run, on the disk behind.
        finished: for each trial that had an outcome when the search was killed: the time of that file.
        study: of the copy that was in the run folder then.
        files: all that were ever made in the run folder.
    """

    behind: Path
    finished: dict[Path, int]
    study: int
    files: list[str]

    def rows(self) -> list[dict[str, Any]]:
        trials: list[dict[str, Any]] = json.loads((self.behind / "leaderboard.json").read_text())["trials"]
        return trials


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, make_tiny: Callable[[], dict[str, Any]]) -> Iterator[Ended]:
    home = tmp_path_factory.mktemp("shared")
    (home / "behind").mkdir()
    tree = make_tiny()
    tree["search"] = {"trials": TRIALS, "max_concurrent": 1}
    (home / "tiny.yaml").write_text(yaml.safe_dump(tree))
    with shared_storage.mounted(home / "behind") as mount:
        folder, behind = mount / "run", home / "behind" / "run"
        process = small_searches.start(home, "--config", "tiny.yaml", "--set", f"run.dir={folder}")
        deadline = time.monotonic() + small_searches.TIMEOUT_S
        while not small_searches.in_the_middle(behind):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        small_searches.kill(process)
        finished = {path: path.stat().st_mtime_ns for path in behind.glob("work/trials/*/outcome.json")}
        known = len(optuna.load_study(study_name=STUDY_NAME, storage=open_copy(behind / "study.db")).trials)
        resumed = small_searches.run(home, "--resume", str(folder))
        assert resumed.returncode == 0, resumed.stdout + resumed.stderr
        yield Ended(behind, finished, known, shared_storage.made_in(home / "behind"))


def test_no_trial_is_lost_or_repeated(ended: Ended) -> None:
    assert ended.finished
    assert {path: path.stat().st_mtime_ns for path in ended.finished} == ended.finished
    rows = ended.rows()
    assert len({row["trial_id"] for row in rows}) == len(rows) == TRIALS
    assert {path.parent.name for path in ended.behind.glob("work/trials/*/outcome.json")} == {
        row["trial_id"] for row in rows
    }


def test_the_leaderboard_and_the_study_say_what_the_trials_say(ended: Ended) -> None:
    rows = ended.rows()
    outcomes = {
        row["trial_id"]: json.loads((ended.behind / "work" / "trials" / row["trial_id"] / "outcome.json").read_text())
        for row in rows
    }
    assert {row["trial_id"]: row["score"] for row in rows} == {name: each["score"] for name, each in outcomes.items()}
    scores = [row["score"] for row in rows if row["score"] is not None]
    assert scores == sorted(scores, reverse=True)
    study = optuna.load_study(study_name=STUDY_NAME, storage=f"sqlite:///{ended.behind / 'study.db'}")
    assert ended.study <= len(study.trials)
    assert TrialState.RUNNING not in {trial.state for trial in study.trials}
    told = {t.user_attrs["trial_id"]: t.value for t in study.trials if t.state == TrialState.COMPLETE}
    assert told == {row["trial_id"]: row["score"] for row in rows}
    verdict = json.loads((ended.behind / "verdict.json").read_text())
    assert verdict["trial_id"] == rows[0]["trial_id"]


def test_nobody_opens_sqlite_on_it(ended: Ended) -> None:
    assert any("study.db" in name for name in ended.files)
    assert [name for name in ended.files if name.endswith(("-journal", "-wal", "-shm"))] == []
