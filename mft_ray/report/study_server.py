"""A run's Optuna study in a browser, as it goes or afterwards (optuna-dashboard)."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
from pathlib import Path
from socketserver import ThreadingMixIn
from types import FrameType
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from mft_ray.errors import UserError

DEFAULT_PORT = 8080


class _Server(ThreadingMixIn, WSGIServer):
    """A browser keeps connections open: a server without threads would wait on the first."""

    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    """Requests are not printed: the address is what a person should find in the terminal."""

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


def open_server(run: Path, host: str = "127.0.0.1", port: int | None = None) -> WSGIServer:
    """A server of the run's Optuna study, bound to its port but not yet serving.

    Args:
        run: a run folder; ``study.db`` in it is opened, also while the search is writing to it.
        host: address to listen on.
        port: port to listen on; None takes 8080, or any free port when that is in use, and 0 any free port.

    Raises:
        UserError: the run holds no study, or the address cannot be listened on.
    """
    database = _study(run)
    # Imported late: optuna takes seconds, a mistyped folder should be told at once.
    from optuna_dashboard import wsgi

    from mft_ray.runs.study_storage import open_storage

    server = _bind(host, port)
    try:
        server.set_app(wsgi(open_storage(database)))
    except BaseException:
        server.server_close()
        raise
    return server


def serve(run: Path, host: str = "127.0.0.1", port: int | None = None) -> None:
    """Serve the study of a run folder until interrupted.

    Args:
        run: run folder.
        host: address to listen on.
        port: port, as in `open_server`.
    """
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        with open_server(run, host, port) as server:
            shown = f"[{host}]" if ":" in host else host
            print(f"Dashboard of {run}: http://{shown}:{server.server_port}/dashboard", flush=True)
            print("Stop it with Ctrl-C.", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                server.serve_forever()
    finally:
        signal.signal(signal.SIGTERM, before)


def _study(run: Path) -> Path:
    database = run.resolve() / "study.db"
    if not database.is_file():
        raise UserError(
            f"There is no study at {run / 'study.db'}. Give the run folder of a search that has started its "
            "trials, such as runs/NAME-TIME."
        )
    try:
        # Read only: optuna would make tables in a file that is not its own.
        with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            connection.execute("SELECT study_id FROM studies LIMIT 1").fetchall()
    except sqlite3.Error as error:
        raise UserError(
            f"{database} is not an Optuna study ({error}). It must be the SQLite file that a search wrote; "
            "give another run folder."
        ) from None
    return database


def _bind(host: str, port: int | None) -> WSGIServer:
    if port is not None and not 0 <= port <= 65535:
        raise UserError(f"--port {port} is not a port. Give a number from 0 to 65535; 0 takes any free one.")
    choices = (DEFAULT_PORT, 0) if port is None else (port,)
    problem = ""
    for choice in choices:
        try:
            return make_server(host, choice, _no_app, server_class=_Server, handler_class=_Quiet)
        except OSError as error:
            problem = error.strerror or str(error)
    raise UserError(
        f"Cannot listen on {host} port {choices[0]}: {problem}. Leave --port out to take a free one, give "
        "another --port, or give a --host that is an address of this machine."
    )


def _no_app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Stand in until the study is open: the port is taken first so that no other program can have it."""
    start_response("503 Service Unavailable", [])
    return []


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
