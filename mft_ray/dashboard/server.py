"""The dashboard, served until interrupted."""

from __future__ import annotations

import os
import secrets
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from mft_ray.errors import UserError

DEFAULT_PORT = 8080
TOKEN = "MFT_RAY_DASHBOARD_TOKEN"
_SHORTEST_TOKEN = 16
# A browser that watches holds its connection for ever; events are ended before.
_END_S = 4


def serve(root: Path, host: str = "127.0.0.1", port: int | None = None) -> None:
    """Serve the page of a run folder until interrupted.

    Args:
        root: run folder, of a search that has begun, goes on, or is over.
        host: address to listen on.
        port: port to listen on; None takes 8080, or any free port when that is in use, and 0 any free port.

    Raises:
        UserError: it is no run folder, or the address cannot be listened on.
    """
    root = root.expanduser()
    _check(root)
    token = _token()
    with _bound(host, port) as listening:
        # Imported late: a mistyped folder should be told at once.
        import uvicorn

        from mft_ray.dashboard.app import build

        number = listening.getsockname()[1]
        config = uvicorn.Config(
            build(root, token, number), log_level="warning", access_log=False, timeout_graceful_shutdown=_END_S
        )
        shown = f"[{host}]" if ":" in host else host
        print(f"Dashboard of {root}: http://{shown}:{number}/?token={token}", flush=True)
        print("Whoever has this address can look, and steer the search. Stop it with Ctrl-C.", flush=True)
        # uvicorn ends in order, and then raises it again.
        with _interrupted_by_sigterm(), suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])


def _check(root: Path) -> None:
    from mft_ray.runs.reading import read

    read(root, so_far=True)


def _token() -> str:
    given = os.environ.get(TOKEN)
    if given is None:
        return secrets.token_urlsafe(24)
    if len(given) < _SHORTEST_TOKEN or not given.isascii() or not given.isprintable():
        raise UserError(
            f"{TOKEN} has {len(given)} characters; it must have {_SHORTEST_TOKEN} or more, letters and digits, for who "
            "guesses it can steer the search. Leave it out to have one made."
        )
    return given


@contextmanager
def _bound(host: str, port: int | None) -> Iterator[socket.socket]:
    if port is not None and not 0 <= port <= 65535:
        raise UserError(f"--port {port} is not a port. Give a number from 0 to 65535; 0 takes any free one.")
    choices = (DEFAULT_PORT, 0) if port is None else (port,)
    problem = ""
    for choice in choices:
        try:
            family = socket.getaddrinfo(host, choice, type=socket.SOCK_STREAM)[0][0]
            listening = socket.create_server((host, choice), family=family)
        except OSError as error:
            problem = error.strerror or str(error)
            continue
        with listening:
            yield listening
        return
    raise UserError(
        f"Cannot listen on {host} port {choices[0]}: {problem}. Leave --port out to take a free one, give "
        "another --port, or give a --host that is an address of this machine."
    )


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
