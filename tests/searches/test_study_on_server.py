"""A search with its study in a PostgreSQL server: the server crashes, the search is killed, the server is gone."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import postgres
import pytest
import small_searches
import yaml
from optuna.trial import FrozenTrial, TrialState

from mft_ray.runs.study.file import STUDY_NAME

pytestmark = pytest.mark.slow

TRIALS = 4
Process = subprocess.CompletedProcess[str]


@dataclass
class Ended:
    """The search, in its processes one after the other.

    Attributes:
        folder: of the run.
        url: of the database.
        without: ended when the server had gone for good.
        last: came to the verdict.
        on_server: what the server said then of the run's trials.
        more: added a trial, without the server.
    """

    folder: Path
    url: str
    without: Process
    last: Process
    on_server: list[tuple[object, ...]]
    more: Process

    def study(self) -> list[FrozenTrial]:
        return optuna.load_study(study_name=STUDY_NAME, storage=f"sqlite:///{self.folder / 'study.db'}").trials

    def rows(self) -> list[dict[str, Any]]:
        trials: list[dict[str, Any]] = json.loads((self.folder / "leaderboard.json").read_text())["trials"]
        return trials


def wait_until(holds: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + small_searches.TIMEOUT_S
    while not holds():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, make_tiny: Callable[[], dict[str, Any]]) -> Iterator[Ended]:
    home = tmp_path_factory.mktemp("server")
    with postgres.server() as its:
        tree = make_tiny()
        tree["train"].update(steps=60, eval_every=10)
        stop = {"below_fft": False, "plateau": None}
        tree["search"] = {"trials": TRIALS, "max_concurrent": 1, "storage": its.url, "stop": stop}
        (home / "tiny.yaml").write_text(yaml.safe_dump(tree))
        folder, known = home / "run", {"PGPASSWORD": postgres.PASSWORD}

        def outcomes() -> int:
            return len(list(folder.glob("work/trials/*/outcome.json")))

        # The server crashes and comes back; then the search is killed.
        process = small_searches.start(home, "--config", "tiny.yaml", "--set", "run.dir=run", **known)
        wait_until(lambda: list(folder.glob("work/trials/*/progress.json")), process)
        its.stop("immediate")
        time.sleep(3)
        its.start()
        wait_until(lambda: small_searches.in_the_middle(folder), process)
        small_searches.kill(process)

        # The server goes for good.
        process = small_searches.start(home, "--resume", "run", **known)
        before = outcomes()
        wait_until(lambda: outcomes() > before, process)
        its.stop()
        said = process.communicate(timeout=400)
        without: Process = subprocess.CompletedProcess(process.args, process.returncode, *said)

        its.start()
        last = small_searches.run(home, "--resume", "run", **known)
        on_server = its.says("SELECT study_name, number, state FROM trials JOIN studies USING (study_id)")
        its.stop()
        changed = ["--set", f"search.trials={TRIALS + 1}", "--set", "search.storage=null"]
        more = small_searches.run(home, "--resume", "run", *changed, "--look-again")
        yield Ended(folder, its.url, without, last, on_server, more)


def test_a_server_that_goes_for_good_ends_the_search_in_a_sentence(ended: Ended) -> None:
    assert ended.without.returncode == 1, ended.without.stdout + ended.without.stderr
    assert f"{ended.url} is away" in ended.without.stdout
    assert "Traceback" not in ended.without.stderr
    said = ended.without.stderr.strip().splitlines()[-1]
    assert f"The study on {ended.url} cannot be used: " in said
    assert f"--resume {ended.folder}" in said
    assert "report so far" in ended.without.stdout


def test_every_trial_is_there_once_on_the_server_and_in_the_run_folder(ended: Ended) -> None:
    assert ended.last.returncode == 0, ended.last.stdout + ended.last.stderr
    assert len({name for name, _, _ in ended.on_server}) == 1
    states = {number: state for _, number, state in ended.on_server}
    assert list(states.values()).count("COMPLETE") == TRIALS
    assert set(states.values()) <= {"COMPLETE", "FAIL"}
    assert {trial.number: trial.state.name for trial in ended.study()[: len(states)]} == states


def test_more_trials_go_on_from_the_run_folder_alone(ended: Ended) -> None:
    assert ended.more.returncode == 0, ended.more.stdout + ended.more.stderr
    rows = ended.rows()
    assert len({row["trial_id"] for row in rows}) == len(rows) == TRIALS + 1
    told = {t.user_attrs["trial_id"]: t.value for t in ended.study() if t.state == TrialState.COMPLETE}
    assert told == {row["trial_id"]: row["score"] for row in rows}
    assert TrialState.RUNNING not in {trial.state for trial in ended.study()}


def test_the_password_is_nowhere(ended: Ended) -> None:
    said = "".join(each.stdout + each.stderr for each in (ended.without, ended.last, ended.more))
    assert postgres.PASSWORD not in said
    secret = postgres.PASSWORD.encode()
    assert [path for path in ended.folder.rglob("*") if path.is_file() and secret in path.read_bytes()] == []
