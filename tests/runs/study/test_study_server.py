"""A study in a real PostgreSQL server, which other runs use too, and which is away at times."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import postgres
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import OperationalError

from mft_ray.config import parse_config
from mft_ray.errors import RunFailed, UserError
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.study import server as study_server
from mft_ray.runs.study.file import STUDY_NAME, open_copy
from mft_ray.runs.study.live import LiveStudy, explained
from mft_ray.runs.study.opening import live_study
from mft_ray.runs.study.server import check_server
from mft_ray.searches.optuna_search import StudySearch, build_search
from mft_ray.searches.trial_report import Ended, Evaluated
from mft_ray.training.job import Evaluation, StopReason

SPACE = {"ratio": FloatDistribution(0.0, 0.5), "init": CategoricalDistribution(["normal", "magnitude"])}
POINTS = [{"ratio": 0.1, "init": "normal"}, {"ratio": 0.4, "init": "magnitude"}]


@pytest.fixture(scope="module")
def its() -> Iterator[postgres.Server]:
    with postgres.server() as server:
        yield server


@pytest.fixture
def url(its: postgres.Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of the server, whose password is in the environment."""
    monkeypatch.setenv("PGPASSWORD", postgres.PASSWORD)
    return its.url


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return make_folder(tmp_path / "run")


def make_folder(root: Path) -> RunFolder:
    folder = RunFolder(root)
    folder.work.mkdir(parents=True)
    return folder


def search(study: LiveStudy, points: list[dict[str, Any]] | None = None) -> StudySearch:
    return build_search(study, SPACE, points or [], "random", 1, 0)


def run(searching: StudySearch, *names: str) -> None:
    for name in names:
        point = searching.suggest(name)
        assert isinstance(point, dict)
        for step in (0, 10):
            last = Evaluation(step, 0.5, 0.01, 64, 1.0, 0.1, point["ratio"], True)
            searching.on_trial_result(name, Evaluated(last, step / 100).to_tune())
        searching.on_trial_complete(name, Ended(StopReason.PLATEAU, 0.4 + point["ratio"], last).to_tune())


def known(trials: list[FrozenTrial]) -> list[tuple[Any, ...]]:
    return [
        (t.number, t.state, t.values, t.params, t.user_attrs, t.system_attrs, t.intermediate_values) for t in trials
    ]


def of_server(study: LiveStudy) -> list[FrozenTrial]:
    return optuna.load_study(study_name=study.name, storage=study.storage).trials


def of_copy(folder: RunFolder) -> list[FrozenTrial]:
    return optuna.load_study(study_name=STUDY_NAME, storage=f"sqlite:///{folder.study}").trials


def test_the_copy_in_the_run_folder_says_at_any_time_what_the_server_says(url: str, folder: RunFolder) -> None:
    with live_study(folder, url) as study:
        searching = search(study, POINTS)
        searching.tell_study("exact match", {"FFT": 0.5})
        run(searching, "a")
        assert known(of_copy(folder)) == known(of_server(study))
        searching.suggest("at work")
        assert known(of_copy(folder)) == known(of_server(study))
        run(searching, "b", "c")
        assert known(of_copy(folder)) == known(of_server(study))
        states = [trial.state for trial in of_server(study)]
        assert states == [TrialState.COMPLETE, TrialState.RUNNING, TrialState.COMPLETE, TrialState.COMPLETE]
    copy = optuna.load_study(study_name=STUDY_NAME, storage=open_copy(folder.study))
    assert copy.user_attrs == {"FFT": 0.5}
    assert copy.metric_names == ["exact match"]
    assert folder.study.read_bytes() == folder.study_copy.read_bytes()


def test_runs_in_one_database_do_not_mix(url: str, tmp_path: Path) -> None:
    folders = [make_folder(tmp_path / name) for name in ("one", "two")]
    with live_study(folders[0], url) as one, live_study(folders[1], url) as two:
        run(search(one), "a")
        run(search(two), "b", "c")
        assert (len(of_server(one)), len(of_server(two))) == (1, 2)
        one.begin_anew()
        assert (one.id, len(of_server(two))) == (None, 2)
    shutil.rmtree(folders[1].root)
    with live_study(make_folder(folders[1].root), url) as new:
        assert new.id is None  # a new run in the old one's place


def test_a_run_finds_its_own_study_again(url: str, folder: RunFolder, tmp_path: Path) -> None:
    with live_study(folder, url) as study:
        searching = search(study)
        run(searching, "a", "b")
        searching.suggest("at work")
        searching.save(str(tmp_path / "snapshot"))
        searching.suggest("lost")
        drawn = of_server(study)[3].params
    moved = RunFolder(folder.root.rename(tmp_path / "moved"))
    with live_study(moved, url) as study:
        again = search(study)
        again.restore(str(tmp_path / "snapshot"))
        run(again, "at work", "c")
        assert [trial.state.name for trial in of_server(study)] == ["COMPLETE"] * 3 + ["FAIL", "COMPLETE"]
        assert of_server(study)[4].params == drawn
        assert known(of_copy(moved)) == known(of_server(study))


def test_a_copied_run_goes_on_by_itself(url: str, folder: RunFolder, tmp_path: Path) -> None:
    with live_study(folder, url) as study:
        run(search(study), "a", "b")
    shutil.copytree(folder.root, tmp_path / "copy")
    with live_study(RunFolder(tmp_path / "copy"), url) as copy, live_study(folder, url) as study:
        run(search(copy), "c")
        run(search(study), "d", "e")
        assert (len(of_server(copy)), len(of_server(study))) == (3, 4)


def test_a_study_moves_between_run_folder_and_server(url: str, folder: RunFolder) -> None:
    names = set()
    for place, name in ((None, "a"), (url, "b"), (None, "c"), (url, "d")):
        with live_study(folder, place) as study:
            names.add(study.name)
            run(search(study), name)
            assert known(of_copy(folder)) == known(of_server(study))
    assert [trial.user_attrs["trial_id"] for trial in of_copy(folder)] == list("abcd")
    assert len(names) == 3  # a server that it comes back to may know what never came into the run folder


@pytest.mark.parametrize("loses", ["all", "the last trials"])
def test_what_a_server_has_lost_comes_back_from_the_copy(
    url: str, its: postgres.Server, folder: RunFolder, loses: str
) -> None:
    with live_study(folder, url) as study:
        searching = search(study)
        run(searching, "a", "b", "c")
        before, number = known(of_server(study)), study.id
    if loses == "all":
        its.says(f"UPDATE studies SET study_name = 'gone' WHERE study_id = {number}")
    else:
        last = f"(SELECT trial_id FROM trials WHERE study_id = {number} AND number = 2)"
        kinds = ("params", "values", "user_attributes", "system_attributes", "intermediate_values")
        for table in (*(f"trial_{kind}" for kind in kinds), "trials"):
            its.says(f"DELETE FROM {table} WHERE trial_id = {last}")
        its.says(f"UPDATE trials SET state = 'RUNNING' WHERE study_id = {number} AND number = 1")
    with live_study(folder, url) as study:
        assert known(of_server(study)) == before


@pytest.mark.parametrize("how", ["fast", "immediate"])
def test_a_server_that_is_away_for_seconds_is_waited_for(
    url: str, its: postgres.Server, folder: RunFolder, how: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with live_study(folder, url) as study:
        searching = search(study)
        run(searching, "a")
        its.stop(how)
        back = threading.Timer(2, its.start)
        back.start()
        run(searching, "b")
        back.join()
        assert [trial.state for trial in of_server(study)] == [TrialState.COMPLETE] * 2
        assert known(of_copy(folder)) == known(of_server(study))
    printed = capfd.readouterr().out
    assert f"{url} is away" in printed
    assert f"{url} is back" in printed


def test_connections_that_a_server_drops_while_trials_are_told_cost_nothing(
    url: str, its: postgres.Server, folder: RunFolder
) -> None:
    over = threading.Event()

    def drop() -> None:
        query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'mft_ray'"
        while not over.wait(0.05):
            its.says(query)

    with live_study(folder, url) as study:
        searching = search(study, POINTS)
        dropper = threading.Thread(target=drop)
        dropper.start()
        try:
            run(searching, *"abcdef")
        finally:
            over.set()
            dropper.join()
        trials = of_server(study)
        assert [trial.params for trial in trials[:2]] == POINTS
        assert [trial.user_attrs["trial_id"] for trial in trials] == list("abcdef")
        assert {trial.state for trial in trials} == {TrialState.COMPLETE}
        assert all(trial.intermediate_values == {0: 0.0, 10: 0.1} for trial in trials)
        assert known(of_copy(folder)) == known(trials)


@pytest.mark.parametrize("call", ["_create_new_trial", "set_trial_state_values"])
def test_a_change_whose_answer_was_lost_is_not_made_twice(
    url: str, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    real, lost = getattr(RDBStorage, call), list[int]()

    def answer_lost(self: RDBStorage, *arguments: Any, **options: Any) -> Any:
        answer = real(self, *arguments, **options)
        if isinstance(self, study_server.PatientStorage) and len(lost) < 3 and not answer_lost_before():
            lost.append(1)
            raise StorageInternalError("lost") from OperationalError("COMMIT", {}, Exception("connection is lost"))
        return answer

    turn = iter([False, True] * 100)

    def answer_lost_before() -> bool:
        return next(turn)

    monkeypatch.setattr(RDBStorage, call, answer_lost)
    with live_study(folder, url) as study:
        run(search(study, POINTS), "a", "b", "c")
        trials = of_server(study)
    assert len(lost) >= 2
    assert [trial.user_attrs["trial_id"] for trial in trials] == list("abc")
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert [trial.params for trial in trials[:2]] == POINTS


def test_a_trial_that_optuna_has_made_twice_is_at_work_once(
    url: str, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = RDBStorage._create_new_trial

    def twice(self: RDBStorage, *arguments: Any) -> FrozenTrial:
        if isinstance(self, study_server.PatientStorage):
            real(self, *arguments)  # its answer was lost
        return real(self, *arguments)

    with live_study(folder, url) as study:
        searching = search(study)
        monkeypatch.setattr(RDBStorage, "_create_new_trial", twice)
        run(searching, "a")
        assert [trial.state.name for trial in of_server(study)] == ["FAIL", "COMPLETE"]
        assert known(of_copy(folder)) == known(of_server(study))


def test_a_server_that_is_away_for_good_ends_the_search_with_what_to_do(
    url: str, its: postgres.Server, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_server, "PATIENCE_S", 1.0)

    def work() -> None:
        with explained(folder), live_study(folder, url) as study:
            searching = search(study)
            run(searching, "a")
            its.stop()
            run(searching, "b")

    try:
        with pytest.raises(RunFailed) as caught:
            work()
    finally:
        its.start()
    message = str(caught.value)
    assert message.startswith(f"The study on {url} cannot be used: ")
    assert "refused" in message
    assert f"--resume {folder.root}" in message
    assert "\n" not in message
    assert [trial.user_attrs["trial_id"] for trial in of_copy(folder)] == ["a"]
    with live_study(folder, url) as study:
        assert known(of_server(study)) == known(of_copy(folder))


def test_the_password_is_written_nowhere(
    url: str, folder: RunFolder, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    with live_study(folder, url) as study:
        searching = search(study)
        run(searching, "a")
        searching.save(str(tmp_path / "snapshot"))
    printed = "".join(capfd.readouterr()) + caplog.text
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert postgres.PASSWORD not in printed
    assert postgres.PASSWORD.encode() not in written
    assert (tmp_path / "snapshot").stat().st_size


def test_heads_that_begin_at_the_same_time_do_not_hinder_each_other(url: str, its: postgres.Server) -> None:
    its.says("CREATE DATABASE empty")
    there = url.replace("/postgres", "/empty")
    program = f"from mft_ray.runs.study.server import PatientStorage; input(); PatientStorage({there!r})"
    heads = [
        subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    time.sleep(8)  # until all have imported what they need
    for head in heads:
        assert head.stdin is not None
        head.stdin.write("\n")
        head.stdin.flush()
    for head in heads:
        assert head.communicate(timeout=120)[1] == ""
        assert head.returncode == 0


def refused(url: str) -> str:
    with pytest.raises(UserError) as caught:
        check_server(url)
    message = str(caught.value)
    assert "\n" not in message
    assert url in message
    assert postgres.PASSWORD not in message
    return message


def test_a_server_that_cannot_be_used_is_refused_before_anything_is_written(
    url: str, its: postgres.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_server(url)
    assert "does not exist" in refused(url.replace("/postgres", "/nothing"))
    assert "refused" in refused(url.replace(str(its.port), "1"))
    its.says("CREATE USER guest PASSWORD 'guest'")
    its.says("CREATE DATABASE others")
    monkeypatch.setenv("PGPASSWORD", "guest")
    said = refused(url.replace(f"{postgres.USER}@", "guest@").replace("/postgres", "/others"))
    assert "permission denied" in said
    monkeypatch.setenv("PGPASSWORD", "wrong")
    said = refused(url)
    assert "password authentication failed" in said
    assert "PGPASSWORD in the environment, or from ~/.pgpass" in said


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "psycopg" else found(name))
    with pytest.raises(UserError, match=r"pip install 'mft_ray\[postgresql\]'"):
        check_server("postgresql://db/masks")


def settings(storage: str) -> dict[str, Any]:
    return {"model": {"path": "m"}, "search": {"storage": storage}}


@pytest.mark.parametrize(
    ("storage", "said"),
    [
        ("mysql://me@db/masks", "PostgreSQL is the one database"),
        ("sqlite:///study.db", "PostgreSQL is the one database"),
        ("study.db", "PostgreSQL is the one database"),
        ("postgresql://db", "names no database"),
        ("postgresql://db:port/masks", "that is no URL"),
        ("postgresql://me:secret!@db/masks", "PGPASSWORD"),
        ("postgresql://me:sec/r@et!secret!@db/masks", "PGPASSWORD"),
        ("postgresql://me:1/secret!@db/masks", "PGPASSWORD"),
        ("postgresql://me@db/masks?password=secret!", "PGPASSWORD"),
        ("postgresql://me@db/masks?sslmode=require&sslpassword=secret!", "PGPASSWORD"),
        ("mysql://me:secret!@db/masks", "PGPASSWORD"),
    ],
)
def test_what_is_no_address_of_a_database_is_refused_and_no_password_shown(storage: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_config(settings(storage))
    assert "search.storage" in str(caught.value)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "storage", ["postgresql://me@db:5432/masks", "postgresql:///masks?host=/run/postgresql", "postgresql://[::1]/masks"]
)
def test_addresses_of_databases_are_taken(storage: str) -> None:
    assert parse_config(settings(storage)).search.storage == storage


def test_a_sampler_that_would_unpickle_what_a_database_says_is_refused() -> None:
    tree = settings("postgresql://db/masks")
    tree["search"]["sampler"] = "cmaes"
    with pytest.raises(UserError, match="cmaes unpickles its state"):
        parse_config(tree)


def test_pgpass_does_as_well(
    url: str, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, its: postgres.Server
) -> None:
    monkeypatch.delenv("PGPASSWORD")
    monkeypatch.setenv("PGPASSFILE", os.fspath(tmp_path / "pgpass"))
    (tmp_path / "pgpass").write_text(f"127.0.0.1:{its.port}:*:{postgres.USER}:{postgres.PASSWORD}\n")
    (tmp_path / "pgpass").chmod(0o600)
    check_server(url)
