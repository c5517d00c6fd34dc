"""A Ray to run on: the one that this process was started on, or one of its own."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import NoReturn

import psutil  # type: ignore[import-untyped]
import ray
from filelock import FileLock, Timeout

from mft_ray.errors import OutOfTime, UserError
from mft_ray.utils.proxies import keep_local
from mft_ray.workers.environment import share

_PREFIX = "mft-"
_LOCK = "held"
_YOUNG_S = 60
_END_S = 20
_LONGEST = 107  # characters of a socket's path


@contextmanager
def connected(num_cpus: int | None = None) -> Iterator[None]:
    """Connect to the Ray that ``RAY_ADDRESS`` or a job names, else start a private one and stop it again.

    Args:
        num_cpus: number of CPUs of a private one; None counts this machine's.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    keep_local()
    in_main = threading.current_thread() is threading.main_thread()
    with ExitStack() as stack:
        if in_main:  # Ray changes the first
            for each in (signal.SIGTERM, signal.SIGUSR1):
                stack.callback(signal.signal, each, signal.getsignal(each) or signal.SIG_DFL)
        if os.environ.get("RAY_ADDRESS"):
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
            _keeper = share()  # it lives as long as this holds it
        else:
            stack.enter_context(_folder())
            stack.callback(_end, _start(num_cpus))
        stack.callback(ray.shutdown)
        # A stopped job gets SIGTERM: the same as Ctrl-C, once Ray's own handler is out of the way.
        if in_main:
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            stack.enter_context(_told_of_time())
        yield


@contextmanager
def _told_of_time() -> Iterator[None]:
    """Raise `OutOfTime` at SIGUSR1."""
    told = threading.Event()

    def tell(number: int, frame: FrameType | None) -> NoReturn:
        told.set()
        raise OutOfTime

    signal.signal(signal.SIGUSR1, tell)
    try:
        yield
    except KeyboardInterrupt:
        if told.is_set():  # while it waits, Ray makes a plain KeyboardInterrupt of what a handler raises
            raise OutOfTime from None
        raise


@contextmanager
def _folder() -> Iterator[None]:
    """Have a folder for all that a Ray and its processes leave in temporary files."""
    home = _home()
    _remove_leftovers(home)
    with TemporaryDirectory(prefix=_PREFIX, dir=home, ignore_cleanup_errors=True) as folder:
        # All processes of this Ray inherit where they find its address. Elsewhere there may be one of a Ray that is
        # gone, and Ray Train, which asks the State API, then takes 12 seconds to end a worker group.
        settings = {"RAY_TMPDIR": folder, "TMPDIR": os.environ.get("TMPDIR", folder), **_token()}
        before = {name: os.environ.get(name) for name in settings}
        os.environ.update(settings)
        held = FileLock(Path(folder) / _LOCK)
        held.acquire()
        try:
            yield
        finally:
            held.release()
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


def _home() -> Path:
    """Return where the folder goes: never into another one, since names add up and Ray's sockets need short paths.

    Raises:
        UserError: ``RAY_TMPDIR`` is no folder, or leaves no room for their names.
    """
    home = Path(os.environ.get("RAY_TMPDIR", "/tmp"))  # a TMPDIR is often too long
    if (home / _LOCK).exists():  # of the process that started this one
        home = home.parent
    if not home.is_dir():
        raise UserError(f"RAY_TMPDIR is {home}, where there is no folder. Make it, or give another one.")
    longest = f"/{_PREFIX}12345678/ray/session_2026-11-28_01-25-56_594872_{os.getpid()}/sockets/dash_TaskEventsHead"
    room = _LONGEST - len(longest)
    if len(os.fsencode(home)) > room:
        raise UserError(
            f"RAY_TMPDIR is {home}, of {len(os.fsencode(home))} characters, and names of Ray's sockets in it would be "
            f"too long for this system. Give a folder of at most {room} characters, on a disk of this machine."
        )
    return home


@cache  # Ray reads it once in the life of a process
def _token() -> dict[str, str]:
    """Return a token for a Ray of this process's own, unless the environment says how its users are to be known.

    Ray listens on the network, and who may talk to it may run anything. Left alone it would keep a token in the home,
    which changes how any other Ray of this user starts.
    """
    if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        return {}
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return {}
    return {"RAY_AUTH_TOKEN": secrets.token_hex(16)}


def _remove_leftovers(home: Path) -> None:
    """Remove the folders of processes that were killed before they could do so.

    A process's number says nothing to another container that shares the folder: its lock does.
    """
    for folder in home.glob(f"{_PREFIX}*"):
        with suppress(OSError, Timeout):
            if time.time() - folder.stat().st_mtime < _YOUNG_S or not (folder / _LOCK).exists():
                continue  # it may not have its lock yet
            with FileLock(folder / _LOCK).acquire(timeout=0):
                shutil.rmtree(folder, ignore_errors=True)


def _start(num_cpus: int | None) -> set[psutil.Process]:
    """Start a Ray; return all its processes but those of workers."""
    others = set(psutil.Process().children())
    # With the dashboard off, placement groups of stopped trials leak: their cleaner asks the State API.
    context = ray.init(
        address="local", num_cpus=num_cpus, include_dashboard=True, log_to_driver=False, logging_level=logging.ERROR
    )
    address = Path(os.environ["RAY_TMPDIR"]) / "ray" / "ray_current_cluster"
    address.write_text(context.address_info["gcs_address"])
    servers = set(psutil.Process().children()) - others
    # The dashboard is several processes; ray.shutdown waits for the first alone.
    return servers | {process for server in servers for process in server.children(recursive=True)}


def _end(processes: set[psutil.Process]) -> None:
    """End processes that would go on for seconds, and write files into the folder that is being removed."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    deadline = time.monotonic() + _END_S
    while any(_writes(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(0.02)


def _writes(process: psutil.Process) -> bool:
    try:
        # Not every container's first process takes zombies away.
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
