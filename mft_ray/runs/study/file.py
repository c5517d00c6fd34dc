"""The file of an Optuna study: SQLite that is read whole and written whole, and never opened where hosts share it.

SQLite changes a file in place and keeps others out by locks, which storage that hosts share may not have, or have late.
A file that is replaced as a whole needs neither: who reads it sees the study before a change or after it.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from optuna.storages import RDBStorage
from sqlalchemy import StaticPool

from mft_ray.utils.files import set_aside, write_bytes

STUDY_NAME = "mft_ray"
# Of another program that was writing into the file. SQLite would apply them to whatever is there under its name.
_JOURNALS = ("-journal", "-wal", "-shm")


def read_study(path: Path | None) -> sqlite3.Connection:
    """Return a copy in memory of the database in a file, which has no tables if there is no file.

    Args:
        path: path of the file; None stands for none.

    Raises:
        sqlite3.DatabaseError: it is no database.
    """
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    if path is not None and (content := _content(path)):
        connection.deserialize(content)
        connection.execute("SELECT count(*) FROM sqlite_master")  # what is no database is noticed by its first use
    return connection


def storage_in(connection: sqlite3.Connection) -> RDBStorage:
    """Return Optuna's storage over a database in memory.

    Args:
        connection: the only one to it.
    """
    return RDBStorage("sqlite://", engine_kwargs={"poolclass": StaticPool, "creator": lambda: connection})


def open_copy(path: Path) -> RDBStorage:
    """Return Optuna's storage over a copy in memory of a study's file, as it is now.

    Args:
        path: path of the file.
    """
    return storage_in(read_study(path))


def write_study(content: bytes, path: Path) -> None:
    """Put a study in the place of a file, whole or not at all.

    Args:
        content: the database.
        path: path of the file.
    """
    for ending in _JOURNALS:
        path.with_name(path.name + ending).unlink(missing_ok=True)
    write_bytes(path, content)


def mend(path: Path, copy: Path) -> bool:
    """Put the copy of a study in its place if it is gone or damaged; what was there is kept beside it.

    Returns:
        Whether that was needed, and there was a copy.
    """
    if sound(path) or not sound(copy):
        return False
    if path.exists():
        set_aside(path, path.with_name(path.name + ".damaged"))
    write_study(copy.read_bytes(), path)
    return True


def sound(path: Path) -> bool:
    """Say whether a file is there and holds a study that can be read.

    Args:
        path: path of the study's file.
    """
    try:
        with closing(read_study(path)) as study:
            [answer] = study.execute("PRAGMA quick_check").fetchone()
            return bool(answer == "ok" and study.execute("SELECT count(*) FROM studies").fetchone() == (1,))
    except sqlite3.DatabaseError:
        return False


def _content(path: Path) -> bytes:
    if not path.exists():
        return b""
    if not any(path.with_name(path.name + ending).exists() for ending in _JOURNALS):
        return path.read_bytes()
    # Another program, such as optuna-dashboard, was ended while it wrote: SQLite takes that back, where it is safe to.
    with tempfile.TemporaryDirectory() as scratch:
        for ending in ("", *_JOURNALS):
            if (part := path.with_name(path.name + ending)).exists():
                shutil.copyfile(part, Path(scratch) / f"study.db{ending}")
        with closing(sqlite3.connect(Path(scratch) / "study.db")) as study:
            study.execute("PRAGMA journal_mode = DELETE").fetchall()
            return study.serialize()
