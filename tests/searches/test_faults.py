"""One search to which bad things happen, one after another; nothing that was finished is lost, and the rest goes on."""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import psutil  # type: ignore[import-untyped]
import pytest
import small_searches
import yaml
from optuna.trial import TrialState

from mft_ray.runs.study.file import STUDY_NAME

pytestmark = pytest.mark.slow

TRIALS = 4
STEPS, EVAL_EVERY = 600, 50
# As Ray titles its processes. The other is what Tune makes of MaskTrial.
WORKER, DRIVER = "ray::RayTrainWorker", "ray::ResourceTrainable"
NAN = {"lr": 1e39}
POINTS = [NAN, {"ratio": 0.2}, {"ratio": 0.3}]  # after the paper's preset


@dataclass
class Ended:
    """The search.

    Attributes:
        folder: of the run.
        process: as it ended.
        second: a process that wanted the same run meanwhile.
        steps: of each trial whose processes were killed, and the least that its progress ever said afterwards.
        left: of all processes when the search had ended.
        temporary: what was left of temporary files.
    """

    folder: Path
    process: subprocess.CompletedProcess[str]
    second: subprocess.CompletedProcess[str]
    steps: dict[str, tuple[int, int]] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    temporary: list[str] = field(default_factory=list)

    def rows(self) -> list[dict[str, Any]]:
        trials: list[dict[str, Any]] = json.loads((self.folder / "leaderboard.json").read_text())["trials"]
        return trials

    def number(self, trial_id: str) -> int:
        """Return a trial's place in the order in which they began."""
        return [path.parent.name for path in begun(self.folder)].index(trial_id) + 1


@pytest.fixture(scope="module")
def temporary() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="", dir="/tmp"))  # short, for Ray's sockets
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, temporary: Path, make_tiny: Callable[[], dict[str, Any]]) -> Ended:
    home = tmp_path_factory.mktemp("faults")
    tree = make_tiny()
    tree["train"].update(steps=STEPS, eval_every=EVAL_EVERY)
    stop = {"below_fft": False, "plateau": None}
    tree["search"] = {"trials": TRIALS, "max_concurrent": 1, "stop": stop, "extra_points": POINTS, "keep": 2}
    tree["search"]["objectives"] = "score_and_ratio"
    tree["search"]["space"] = {"lr": {"high": NAN["lr"]}}
    (home / "tiny.yaml").write_text(yaml.safe_dump(tree))
    folder = home / "run"
    search = small_searches.start(home, "--config", "tiny.yaml", "--set", "run.dir=run", RAY_TMPDIR=str(temporary))
    family = psutil.Process(search.pid)
    try:
        first = wait_for_progress(search, folder, number=1)
        kill(family, WORKER)
        twin = small_searches.start(home, "--resume", "run")
        steps = {first: watch(search, folder, first)}
        third = wait_for_progress(search, folder, number=3)
        kill(family, DRIVER)
        steps[third] = watch(search, folder, third)
        hold(folder / "study.db", 6)
        said = twin.communicate(timeout=240)
        children = family.children(recursive=True)
        out, err = search.communicate(timeout=small_searches.TIMEOUT_S)
    finally:
        if search.poll() is None:
            small_searches.kill(search)
    print(out)
    _, alive = psutil.wait_procs(children, timeout=30)
    return Ended(
        folder,
        subprocess.CompletedProcess(search.args, search.returncode, out, err),
        subprocess.CompletedProcess(twin.args, twin.returncode, *said),
        steps,
        [" ".join(process.cmdline()) for process in alive],
        [str(path) for path in temporary.rglob("*")],
    )


def begun(folder: Path) -> list[Path]:
    """Configurations of trials, in the order in which they began."""
    return sorted((folder / "work" / "trials").glob("*/config.json"), key=lambda path: path.stat().st_mtime_ns)


def wait_for_progress(search: subprocess.Popen[str], folder: Path, number: int) -> str:
    """Wait until a trial, counted from 1, has left a checkpoint; return its id."""
    deadline = time.monotonic() + small_searches.TIMEOUT_S
    while True:
        assert search.poll() is None, search.communicate()
        assert time.monotonic() < deadline
        trials = begun(folder)
        trial = trials[-1].parent if len(trials) == number else None
        if trial and step(trial) >= 2 * EVAL_EVERY and list(trial.glob("checkpoints/step-*")):
            return trial.name
        time.sleep(0.05)


def kill(family: psutil.Process, title: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        titles = {process: " ".join(process.cmdline()) for process in family.children(recursive=True)}
        found = [process for process, theirs in titles.items() if theirs.startswith(title)]
        # Ray writes a process's title anew with each call: it may be half there.
        if len(found) == 1:
            found[0].kill()
            return
        assert time.monotonic() < deadline, sorted(titles.values())
        time.sleep(0.05)


def hold(study: Path, seconds: float) -> None:
    """Hold the study as another program might, for longer than SQLite's own patience of 5 s."""
    with closing(sqlite3.connect(study, timeout=30)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        time.sleep(seconds)


def watch(search: subprocess.Popen[str], folder: Path, trial: str) -> tuple[int, int]:
    """Return a trial's step now, and the least that it says until it has ended."""
    path = folder / "work" / "trials" / trial
    now = least = step(path)
    deadline = time.monotonic() + small_searches.TIMEOUT_S
    while not (path / "outcome.json").exists():
        assert search.poll() is None, search.communicate()
        assert time.monotonic() < deadline
        least = min(least, step(path))
        time.sleep(0.05)
    return now, least


def step(trial: Path) -> int:
    progress = trial / "progress.json"
    return int(json.loads(progress.read_text())["step"]) if progress.exists() else 0


def test_the_search_ends_with_a_verdict(ended: Ended) -> None:
    assert ended.process.returncode == 0, ended.process.stderr
    assert "Traceback" not in ended.process.stderr
    assert (ended.folder / "verdict.json").exists()
    assert len(ended.rows()) == TRIALS


@pytest.mark.parametrize(
    ("number", "said"),
    [(1, r"worker process has died"), (3, "its driver has died")],
)
def test_a_trial_whose_process_is_killed_goes_on_from_its_checkpoint(ended: Ended, number: int, said: str) -> None:
    trials = list(ended.steps)
    trial = trials[0] if number == 1 else trials[1]
    assert ended.number(trial) == number
    step, least_afterwards = ended.steps[trial]
    assert least_afterwards >= step - EVAL_EVERY > 0
    [row] = [row for row in ended.rows() if row["trial_id"] == trial]
    assert (row["status"], row["steps"]) == ("completed", STEPS)
    lines = [line for line in ended.process.stdout.splitlines() if f"trial {number}/{TRIALS}: " in line]
    assert len(lines) == 1, lines
    assert said in lines[0]
    assert "goes on from its last checkpoint" in lines[0]


def test_a_trial_that_diverges_fails_with_its_reason_and_no_other(ended: Ended) -> None:
    failed = [row for row in ended.rows() if row["stopped_reason"] == "failed"]
    assert [ended.number(row["trial_id"]) for row in failed] == [2]
    assert failed[0]["config"]["lr"] == NAN["lr"]
    assert "have become NaN; a lower learning rate may help" in failed[0]["error"]
    assert failed[0]["score"] is None
    assert all(math.isfinite(row["score"]) for row in ended.rows() if row not in failed)


def test_the_study_knows_it_all(ended: Ended) -> None:
    study = optuna.load_study(study_name=STUDY_NAME, storage=f"sqlite:///{ended.folder / 'study.db'}")
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 4
    scores = {row["config"]["ratio"]: row["score"] for row in ended.rows() if row["score"] is not None}
    first, diverged, *others = study.trials
    assert [(trial.values[0], round(trial.values[1], 2)) for trial in (first, *others)] == [
        (scores[ratio], ratio) for ratio in (0.1, 0.2, 0.3)
    ]
    # It teaches the sampler to keep away.
    assert diverged.values[0] == first.values[0]
    assert diverged.user_attrs["stopped_reason"] == "failed"
    rows = {row["trial_id"]: row["stopped_reason"] for row in ended.rows()}
    assert {trial.user_attrs["trial_id"]: trial.user_attrs["stopped_reason"] for trial in study.trials} == rows


def test_the_pareto_front_is_shown(ended: Ended) -> None:
    front = {row["trial_id"] for row in ended.rows() if row["pareto"]}
    assert front
    shown = [line for line in ended.process.stdout.splitlines() if "◇" in line and "Pareto" not in line]
    assert {trial for trial in front if any(trial in line for line in shown)} == front
    assert "on the Pareto front of score and ratio" in ended.process.stdout
    assert "Pareto front" in (ended.folder / "report.html").read_text()


def test_the_same_run_started_twice_is_refused(ended: Ended) -> None:
    assert ended.second.returncode == 2
    assert f"Another process is working on {ended.folder}" in ended.second.stderr
    assert "Traceback" not in ended.second.stderr


def test_nothing_is_left_behind(ended: Ended) -> None:
    assert ended.left == []
    assert ended.temporary == []
    work = ended.folder / "work"
    assert not list(ended.folder.rglob("*.partial"))
    assert not list(work.rglob("checkpoints"))
    masks = {path.parent.name for path in work.rglob("trials/*/mask.safetensors")}
    assert masks == {row["trial_id"] for row in ended.rows()[:2]}  # search.keep
