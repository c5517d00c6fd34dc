"""A run's Optuna study in optuna-dashboard, as it goes or afterwards."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mft_ray.errors import UserError
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.live.steering import at_work

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

App = Callable[[Any, Any], Iterable[bytes]]


def study_app(database: Path) -> App:
    """Return optuna-dashboard over a study, which need not be there yet: until then, a page that says so.

    Args:
        database: path of the study's file.
    """
    lock, opened = threading.Lock(), list[App]()

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        with lock:
            if not opened:
                try:
                    check_study(database)
                except UserError as error:
                    start_response("503 Service Unavailable", [("Content-Type", "text/plain; charset=utf-8")])
                    return [str(error).encode()]
                # Imported late: it takes seconds, and who looks at our own page does not need it.
                from optuna_dashboard import wsgi

                opened.append(wsgi(_as_it_is(database)))
        return opened[0](environ, start_response)

    return app


def _as_it_is(database: Path) -> RDBStorage:
    """Return Optuna's storage over a file that a search replaces as a whole: it is opened anew for each look.

    Notes can be written into it while no search works on the run; one that does would replace them.
    """
    from optuna.storages import RDBStorage
    from sqlalchemy import NullPool

    folder = RunFolder(database.parent)

    def connect() -> sqlite3.Connection:
        # Nobody changes the file in place, and storage that hosts share may have no locks.
        mode = "mode=ro&immutable=1" if at_work(folder) else "mode=rw"
        return sqlite3.connect(f"{database.resolve().as_uri()}?{mode}", uri=True, check_same_thread=False)

    return RDBStorage("sqlite://", engine_kwargs={"poolclass": NullPool, "creator": connect}, skip_table_creation=True)


def check_study(database: Path) -> None:
    """Refuse a file that is no study; optuna would make tables in it.

    Args:
        database: path of the file.

    Raises:
        UserError: there is none, or it is something else.
    """
    if not database.is_file():
        raise UserError(f"There is no study at {database} yet. A search writes it when its trials begin.")
    try:
        # Read only: optuna would make tables in a file that is not its own.
        with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            connection.execute("SELECT study_id FROM studies LIMIT 1").fetchall()
    except sqlite3.Error as error:
        raise UserError(
            f"{database} is not an Optuna study ({error}). It must be the SQLite file that a search wrote; "
            "give another run folder."
        ) from None
