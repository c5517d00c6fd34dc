"""The file of an Optuna study: opened with patience, kept twice, mended when it is damaged."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from optuna.storages import RDBStorage
from sqlalchemy import URL

from mft_ray.errors import RunFailed
from mft_ray.utils.files import replacing, set_aside

# How long another program, such as a dashboard, may hold the file. SQLite's own is 5 s.
PATIENCE_S = 60.0


def new_storage(path: Path) -> RDBStorage:
    """Return Optuna's storage over a SQLite file, replaced if it is there."""
    path.unlink(missing_ok=True)
    return open_storage(path)


def open_storage(path: Path) -> RDBStorage:
    """Return Optuna's storage over a SQLite file, made if it is not there."""
    # A path may hold what means something in a URL, such as % or ?.
    url = URL.create("sqlite", database=str(path)).render_as_string()
    return RDBStorage(url, engine_kwargs={"connect_args": {"timeout": PATIENCE_S}})


def keep_copy(path: Path, copy: Path) -> None:
    """Copy a study as it is now, whole or not at all, also while others write to it."""
    with replacing(copy) as partial, closing(_connect(path)) as study, closing(_connect(partial)) as new:
        study.backup(new)


@contextmanager
def copied(path: Path) -> Iterator[RDBStorage]:
    """Context manager yielding Optuna's storage over a copy of a study: whoever looks holds no search up.

    Args:
        path: path of the study's file.
    """
    with TemporaryDirectory(prefix="mft_ray-study-") as folder:
        copy = Path(folder) / path.name
        keep_copy(path, copy)
        storage = open_storage(copy)
        try:
            yield storage
        finally:
            storage.remove_session()
            storage.engine.dispose()


def mend(path: Path, copy: Path) -> bool:
    """Put the copy of a study in its place if it is gone or damaged; what was there is kept beside it.

    Returns:
        Whether that was needed, and there was a copy.

    Raises:
        RunFailed: another program holds the study.
    """
    with explained(path):
        if sound(path) or not sound(copy):
            return False
    if path.exists():
        set_aside(path, path.with_name(path.name + ".damaged"))
    # Of the damaged one: SQLite would apply it to the copy.
    path.with_name(path.name + "-journal").unlink(missing_ok=True)
    with replacing(path) as partial:
        shutil.copyfile(copy, partial)
    return True


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say in a sentence what is wrong with a study's file, whoever finds out.

    Raises:
        RunFailed: instead of any error that SQLite is the cause of.
    """
    try:
        yield
    except Exception as error:
        cause = _sqlite_error(error)
        if cause is None:
            raise
        raise RunFailed(
            f"The study {path} cannot be used: {cause}. If another program holds it, close that; if the disk is full, "
            f"free space. What was finished is kept: --resume {path.parent}, which also mends a damaged study."
        ) from error


def sound(path: Path) -> bool:
    """Say whether a file is there and holds a study that can be read.

    Args:
        path: path of the study's file.
    """
    if not path.exists():
        return False
    try:
        with closing(_connect(path)) as study:
            [answer] = study.execute("PRAGMA quick_check").fetchone()
            return bool(answer == "ok" and study.execute("SELECT count(*) FROM studies").fetchone() == (1,))
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise
        return False


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=PATIENCE_S)


def _sqlite_error(error: BaseException | None) -> sqlite3.DatabaseError | None:
    while error is not None and not isinstance(error, sqlite3.DatabaseError):
        error = error.__cause__ or error.__context__
    return error
