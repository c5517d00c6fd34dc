"""A study's file: written whole, mended from its copy, and readable by others at any time."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution

from mft_ray.errors import RunFailed
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.study.file import STUDY_NAME, mend, open_copy, sound
from mft_ray.runs.study.live import LocalStudy, explained
from mft_ray.runs.study.opening import live_study
from mft_ray.searches.optuna_search import StudySearch, build_search


def search(*files: Path) -> StudySearch:
    return build_search(LocalStudy(*files), {"ratio": FloatDistribution(0, 0.5)}, [], "random", 1, 0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A study with one trial, and a copy of it."""
    path = tmp_path / "study.db"
    search(tmp_path / "copy.db", path).suggest("a")
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


DAMAGE = [truncate, overwrite, scribble, empty, Path.unlink]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_study_is_replaced_by_its_copy_and_kept(path, tmp_path, damage):
    copy = tmp_path / "copy.db"
    damage(path)
    before = path.read_bytes() if path.exists() else None
    assert mend(path, copy)
    assert trials(path) == 1
    damaged = tmp_path / "study.db.damaged"
    assert (damaged.read_bytes() if damaged.exists() else None) == before
    assert not mend(path, copy)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_search_goes_on_with_the_copy_where_the_study_is_damaged(path, tmp_path, damage):
    damage(path)
    search(tmp_path / "copy.db", path).suggest("b")
    assert trials(path) == trials(tmp_path / "copy.db") == 2


def test_a_sound_study_is_left_alone(path, tmp_path):
    before = path.read_bytes()
    assert not mend(path, tmp_path / "copy.db")
    assert path.read_bytes() == before


def test_a_damaged_study_without_a_copy_is_not_touched(path, tmp_path):
    overwrite(path)
    before = path.read_bytes()
    assert not mend(path, tmp_path / "no_copy.db")
    assert path.read_bytes() == before


def test_a_study_that_another_program_holds_holds_nobody_up(path):
    with closing(sqlite3.connect(path)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        search(path).suggest("b")
    assert trials(path) == 2


def test_what_another_program_was_ended_in_is_taken_back(path, tmp_path):
    with closing(sqlite3.connect(path)) as writer:
        writer.execute("PRAGMA cache_size = 1")  # so that changes are in the file before they are decided
        writer.execute("DELETE FROM trials")
        writer.execute("CREATE TABLE big AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 9999) "
                       "SELECT i, hex(randomblob(200)) AS x FROM n")  # fmt: skip
        killed = tmp_path / "killed"
        killed.mkdir()
        for name in ("study.db", "study.db-journal"):
            shutil.copyfile(tmp_path / name, killed / name)
    study = killed / "study.db"
    assert sound(study)
    search(study).suggest("b")
    assert trials(study) == 2
    assert [file.name for file in killed.iterdir()] == ["study.db"]  # the journal would be applied to the new file


def test_whoever_reads_while_it_is_written_finds_a_whole_study(path):
    working, over, seen = search(path), threading.Event(), list[int]()

    def look() -> None:
        while not over.is_set():
            seen.append(trials(path))

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(40):
        working.suggest(str(number))
    over.set()
    reader.join()
    assert seen == sorted(seen)
    assert trials(path) == 41


def test_a_copy_to_look_at_changes_nothing(path):
    before = path.read_bytes()
    study = optuna.load_study(study_name=STUDY_NAME, storage=open_copy(path))
    study.set_user_attr("note", "mine")
    study.ask()
    assert path.read_bytes() == before


def test_a_disk_that_is_gone_is_said_plainly(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.work.mkdir(parents=True)

    def work() -> None:
        with explained(folder), live_study(folder, None) as study:
            found = build_search(study, {"ratio": FloatDistribution(0, 0.5)}, [], "random", 1, 0)
            shutil.rmtree(folder.root)
            found.suggest("a")

    with pytest.raises(RunFailed) as caught:
        work()
    message = str(caught.value)
    assert "cannot be written: No such file or directory" in message
    assert f"--resume {folder.root}" in message
    assert "\n" not in message


def test_other_errors_are_not_the_studys(tmp_path):
    with pytest.raises(ZeroDivisionError), explained(RunFolder(tmp_path)):
        _ = 1 / 0


@pytest.mark.parametrize("name", ["a%20b", "my[v2]", "a#b?c", "100%", "{x}", "a*b", "with space", "c:d@e", "a&b=c;"])
def test_names_of_run_folders_mean_nothing(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "study.db"
    path.parent.mkdir()
    search(path).suggest("a")
    assert [file.name for file in path.parent.iterdir()] == ["study.db"]
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert len(optuna.load_study(study_name=STUDY_NAME, storage=open_copy(path)).trials) == 1
    path.rename(path.with_name("copy.db"))
    assert mend(path, path.with_name("copy.db"))
