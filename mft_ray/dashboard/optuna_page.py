"""A run's Optuna study in optuna-dashboard, as it goes or afterwards."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from mft_ray.errors import UserError
from mft_ray.runs.live.snapshot import Live
from mft_ray.utils.files import Signature, signature

App = Callable[[Any, Any], Iterable[bytes]]

# A study that grows is copied again after so long at the earliest, and copying takes this part of the time at most.
_EVERY_S = 3.0
_PART = 0.1
_COPY = "This is a copy of the search's study: nothing can be changed here."
_READS = ("GET", "HEAD")


class StudyApp:
    """optuna-dashboard over a copy of a study, which need not be there yet: until then, a page that says so.

    Args:
        database: path of the study's file.
        now: returns the run as it is.
    """

    def __init__(self, database: Path, now: Callable[[], Live]) -> None:
        self._database, self._now = database, now
        self._lock = threading.Lock()
        self._app: App | None = None
        self._masks: Mapping[str, Path] = {}
        self._made_of: tuple[Signature | None, Live] | None = None
        self._due = 0.0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer a request."""
        if environ["REQUEST_METHOD"] not in _READS:
            start_response("403 Forbidden", [("Content-Type", "application/json")])
            return [json.dumps({"reason": _COPY}).encode()]
        try:
            app = self._fresh()
        except UserError as error:
            start_response("503 Service Unavailable", [("Content-Type", "text/plain; charset=utf-8")])
            return [str(error).encode()]
        if environ["PATH_INFO"].startswith("/artifacts/") and not self._there(environ["PATH_INFO"]):
            start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
            return [b"This mask is no longer kept: only the best trials keep theirs (search.keep)."]
        return app(environ, start_response)

    def _there(self, address: str) -> bool:
        path = self._masks.get(address.rpartition("/")[2])
        return path is not None and path.exists()

    def _fresh(self) -> App:
        """Return the app over the study as it is, or was a moment ago."""
        with self._lock:
            began = time.monotonic()
            if self._app is not None and began < self._due:
                return self._app
            made_of = signature(self._database), self._now()
            if self._app is None or made_of != self._made_of:
                try:
                    self._app, self._made_of = self._made(made_of[1]), made_of
                except sqlite3.Error:  # the search is writing: what there is will do
                    if self._app is None:
                        raise
            now = time.monotonic()
            self._due = now + max(_EVERY_S, (now - began) / _PART)
            return self._app

    def _made(self, live: Live) -> App:
        check_study(self._database)
        # Imported late: it takes seconds, and who looks at our own page does not need it.
        from optuna_dashboard import wsgi

        from mft_ray.dashboard.annotated import annotated

        storage, masks = annotated(self._database, live)
        self._masks = masks.paths
        app: App = wsgi(storage, artifact_store=masks)
        return app


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
