"""A study's file that is held by another program, damaged or gone."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution

from mft_ray.errors import RunFailed
from mft_ray.runs import study_storage as study_file
from mft_ray.runs.study_storage import explained, keep_copy, mend, new_storage
from mft_ray.searches.optuna_search import STUDY_NAME, build_search


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A study with one trial."""
    path = tmp_path / "study.db"
    build_search(new_storage(path), {"ratio": FloatDistribution(0, 0.5)}, [], "random", 1, 0).suggest("a")
    return path


def trials(path: Path) -> int:
    return len(optuna.load_study(study_name=STUDY_NAME, storage=f"sqlite:///{path}").trials)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def overwrite(path: Path) -> None:
    path.write_bytes(b"not a database" * 1000)


def scribble(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096 : 3 * 4096] = b"\xff" * 2 * 4096  # the pages after the first
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, overwrite, scribble, empty, Path.unlink])
def test_a_damaged_study_is_replaced_by_its_copy_and_kept(path, tmp_path, damage):
    copy = tmp_path / "copy.db"
    keep_copy(path, copy)
    damage(path)
    before = path.read_bytes() if path.exists() else None
    assert mend(path, copy)
    assert trials(path) == 1
    damaged = tmp_path / "study.db.damaged"
    assert (damaged.read_bytes() if damaged.exists() else None) == before
    assert not mend(path, copy)
    assert not list(tmp_path.glob("*.partial"))


def test_a_sound_study_is_left_alone(path, tmp_path):
    copy = tmp_path / "copy.db"
    keep_copy(path, copy)
    before = path.read_bytes()
    assert not mend(path, copy)
    assert path.read_bytes() == before


def test_a_damaged_study_without_a_copy_is_not_touched(path, tmp_path):
    overwrite(path)
    before = path.read_bytes()
    assert not mend(path, tmp_path / "copy.db")
    assert path.read_bytes() == before


def test_a_study_that_is_held_for_a_while_is_waited_for(path):
    holder = sqlite3.connect(path, check_same_thread=False)
    holder.execute("BEGIN EXCLUSIVE")
    search = build_search(
        new_storage(path.with_name("other.db")), {"ratio": FloatDistribution(0, 0.5)}, [], "random", 1, 0
    )
    assert search.suggest("b")
    release = threading.Timer(6, holder.rollback)  # longer than SQLite's own patience
    release.start()
    storage = study_file.open_storage(path)
    study = optuna.load_study(study_name=STUDY_NAME, storage=storage)
    study.ask()
    release.join()
    assert trials(path) == 2
    holder.close()


def test_a_study_that_is_held_for_good_is_said_plainly(path, tmp_path, monkeypatch):
    monkeypatch.setattr(study_file, "PATIENCE_S", 0.2)
    with closing(sqlite3.connect(path)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(RunFailed) as caught, explained(path):
            optuna.load_study(study_name=STUDY_NAME, storage=study_file.open_storage(path)).ask()
        with pytest.raises(RunFailed, match="database is locked"):
            mend(path, tmp_path / "copy.db")
    message = str(caught.value)
    assert "database is locked" in message
    assert f"--resume {tmp_path}" in message
    assert "\n" not in message


def test_other_errors_are_not_the_studys(path):
    with pytest.raises(ZeroDivisionError), explained(path):
        _ = 1 / 0


@pytest.mark.parametrize("name", ["a%20b", "my[v2]", "a#b?c", "100%", "{x}", "a*b", "with space", "c:d@e", "a&b=c;"])
def test_names_of_run_folders_mean_nothing(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "study.db"
    path.parent.mkdir()
    build_search(new_storage(path), {"ratio": FloatDistribution(0, 0.5)}, [], "random", 1, 0).suggest("a")
    assert [file.name for file in path.parent.iterdir()] == ["study.db"]
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert len(optuna.load_study(study_name=STUDY_NAME, storage=study_file.open_storage(path)).trials) == 1
    keep_copy(path, path.with_name("copy.db"))
    path.unlink()
    assert mend(path, path.with_name("copy.db"))
