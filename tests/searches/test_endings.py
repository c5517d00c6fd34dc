"""Searches that end before their last trial, because someone or something says so."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import small_searches
import yaml
from optuna.trial import TrialState

from mft_ray.runs.study.file import STUDY_NAME

pytestmark = pytest.mark.slow


def in_the_middle(process: subprocess.Popen[str], folder: Path) -> None:
    """Wait until one more trial has ended, and another has begun."""
    deadline = time.monotonic() + small_searches.TIMEOUT_S
    while not small_searches.in_the_middle(folder):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def interrupted(
    tmp_path_factory: pytest.TempPathFactory, make_tiny: Callable[[], dict[str, Any]]
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A search that got one Ctrl-C when one trial had ended and another was at work: its folder and its process."""
    home = tmp_path_factory.mktemp("endings")
    tree = make_tiny()
    tree["search"] = {"trials": 50, "max_concurrent": 1}
    (home / "tiny.yaml").write_text(yaml.safe_dump(tree))
    process = small_searches.start(home, "--config", "tiny.yaml", "--set", "run.dir=run")
    in_the_middle(process, home / "run")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=400)
    return home / "run", subprocess.CompletedProcess(process.args, process.returncode, out, err)


def rows(folder: Path) -> list[dict[str, Any]]:
    trials: list[dict[str, Any]] = json.loads((folder / "leaderboard.json").read_text())["trials"]
    return trials


@pytest.mark.core
def test_ctrl_c_finishes_the_report_and_says_how_to_go_on(
    interrupted: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, ended = interrupted
    assert ended.returncode == 130
    assert "ending in order" in ended.stdout
    assert f"--resume {folder}" in ended.stdout
    assert "Traceback" not in ended.stderr
    assert (folder / "report.html").exists()
    # The test split is for the end of the search.
    assert not (folder / "verdict.json").exists()
    done = [row["trial_id"] for row in rows(folder) if row["score"] is not None]
    assert done
    assert done[0] in (folder / "report.html").read_text()


def test_ctrl_c_twice_ends_at_once_and_loses_nothing(
    interrupted: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, _ = interrupted
    before = {path: path.read_bytes() for path in (folder / "work" / "trials").glob("*/outcome.json")}
    process = small_searches.start(folder.parent, "--resume", "run")
    deadline = time.monotonic() + small_searches.TIMEOUT_S
    while len(list((folder / "work" / "trials").glob("*/outcome.json"))) < len(before) + 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    out, err = process.communicate(timeout=400)
    assert time.monotonic() - began < 15
    assert process.returncode == 130
    assert f"--resume {folder}" in out
    assert "Traceback" not in err
    assert {path: path.read_bytes() for path in before} == before


def test_a_spent_budget_ends_in_a_verdict_on_what_there_is(
    interrupted: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, _ = interrupted
    finished = {row["trial_id"]: row["seconds"] for row in rows(folder) if row["score"] is not None}
    config = yaml.safe_load((folder / "config.yaml").read_text())
    used = sum(json.loads((folder / "work" / "spent.json").read_text())["tokens"].values())
    assert used > 0
    # Enough for what was at work and a bit more, far from enough for 50 trials.
    config["search"]["budget"]["tokens"] = used + 3 * 30 * 16 * 8
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "study.db").write_bytes(b"what a broken disk leaves" * 1000)
    resumed = small_searches.run(folder.parent, "--resume", "run")
    assert resumed.returncode == 0, resumed.stderr
    assert "budget left: " in resumed.stdout
    assert "the budget is spent" in resumed.stdout
    board = rows(folder)
    assert 2 <= len(board) < 20
    assert finished.items() <= {row["trial_id"]: row["seconds"] for row in board}.items()
    verdict = json.loads((folder / "verdict.json").read_text())
    assert verdict["trial_id"] == board[0]["trial_id"]
    # The damaged study was mended.
    assert "study.db was damaged or gone" in resumed.stdout
    assert (folder / "study.db.damaged").exists()
    study = optuna.load_study(study_name=STUDY_NAME, storage=f"sqlite:///{folder / 'study.db'}")
    values = [trial.value for trial in study.get_trials(states=[TrialState.COMPLETE])]
    assert sorted(values) == sorted(row["score"] for row in board if row["score"] is not None)
    assert not study.get_trials(states=[TrialState.RUNNING])


def test_out_of_time_ends_in_order_says_how_to_go_on_and_nothing_is_lost(
    tmp_path: Path, make_tiny: Callable[[], dict[str, Any]]
) -> None:
    """SIGUSR1, as Slurm sends it before a time limit: while FFT is trained, then in the middle of a trial."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(make_tiny() | {"search": {"trials": 3, "max_concurrent": 1}}))
    process = small_searches.start(tmp_path, "--config", "tiny.yaml", "--set", "run.dir=run")
    assert process.stdout
    assert any("1/4 FFT baseline" in line for line in process.stdout)
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=400)
    assert (process.returncode, "Traceback" in err) == (75, False), err
    assert f"interrupted; what was finished is kept: --resume {tmp_path / 'run'}" in out
    assert err.splitlines()[-1] == "out of time"

    process = small_searches.start(tmp_path, "--resume", "run")
    in_the_middle(process, tmp_path / "run")
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=400)
    assert (process.returncode, "Traceback" in err) == (75, False), err
    assert "ending in order" in out
    assert not (tmp_path / "run" / "verdict.json").exists()
    done = {row["trial_id"]: row["score"] for row in rows(tmp_path / "run") if row["score"] is not None}
    assert done

    resumed = small_searches.run(tmp_path, "--resume", "run")
    assert resumed.returncode == 0, resumed.stderr
    scores = {row["trial_id"]: row["score"] for row in rows(tmp_path / "run")}
    assert len(scores) == 3
    assert done.items() <= scores.items()
    assert (tmp_path / "run" / "verdict.json").exists()
