"""Run programs that a model wrote where they can do nothing but compute.

Each program gets a process of its own, in which the Linux kernel refuses everything but computing: no file is opened,
no socket, no process, no signal sent. Time and memory are limited, the environment is empty. What the program prints is
dropped; whether it ran to its end is all that comes back. A program that ends early has not passed.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mft_ray.errors import UserError

_SCRIPT = Path(__file__).with_name("jailed.py")
_CONFINED = b"confined\n"
_MOST, _REASON = 4096, 300  # bytes that are listened to, and told
# Python starts and imports before the program's own time begins.
_START_S = 30.0


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        seconds: of wall time.
        megabytes: of address space; Python with NumPy takes some 300 of them.
    """

    seconds: float = 10.0
    megabytes: int = 2048


@dataclass(frozen=True)
class Ran:
    """How a program ended.

    Attributes:
        passed: whether it ran to its end.
        reason: why not, in a line; empty if it passed.
    """

    passed: bool
    reason: str = ""


def run(program: str, limits: Limits | None = None) -> Ran:
    """Run one Python program, tests included, and say whether it ran to its end without an error.

    Args:
        program: its source.
        limits: what it may use.

    Raises:
        UserError: this machine cannot confine a program; it was not run.
    """
    limits = limits or Limits()
    token = secrets.token_hex(16)
    request = {"program": program, "token": token, "seconds": limits.seconds, "megabytes": limits.megabytes}
    with subprocess.Popen(
        [sys.executable, "-I", str(_SCRIPT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
        env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},  # a thread would not be confined
        start_new_session=True,
    ) as process:
        try:
            said = _listen(process, json.dumps(request).encode(), limits.seconds)
            if not said.startswith(_CONFINED):
                raise UserError(_unconfined(process))
        except TimeoutError:
            return Ran(False, f"it took longer than {limits.seconds:g} s")
        finally:
            process.kill()
    said = said.removeprefix(_CONFINED)
    if said == token.encode():
        return Ran(True)
    if process.returncode in (-signal.SIGXCPU, -signal.SIGKILL) and not said:
        return Ran(False, f"it took longer than {limits.seconds:g} s")
    text = " ".join(said[:_REASON].decode(errors="replace").split())
    return Ran(False, text or f"it ended with status {process.returncode}")


def _listen(process: subprocess.Popen[bytes], request: bytes, seconds: float) -> bytes:
    """Hand in a request and return what is said, up to a bound, until the process closes its output.

    Raises:
        TimeoutError: it takes longer than it may, from when it has been confined.
    """
    assert process.stdin
    assert process.stdout
    with suppress(BrokenPipeError):  # it could not even start, and will have said why
        process.stdin.write(request)
        process.stdin.close()
    said, deadline, started = b"", time.monotonic() + _START_S, False
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while len(said) < _MOST:
            if not selector.select(max(deadline - time.monotonic(), 0)):
                raise TimeoutError
            new = os.read(process.stdout.fileno(), _MOST)
            if not new:
                process.wait()
                break
            said += new
            if not started and said.startswith(_CONFINED):
                started, deadline = True, time.monotonic() + seconds
    return said


def _unconfined(process: subprocess.Popen[bytes]) -> str:
    assert process.stderr
    lines = process.stderr.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
    return (
        f"Generated code is not run on this machine, since it cannot be confined ({platform.system()} "
        f"{platform.machine()}: {lines[-1]}). That takes Linux on x86_64 or aarch64 with seccomp. Leave the task out."
    )


def run_all(programs: Sequence[str], limits: Limits | None = None, at_once: int = 2) -> Iterator[Ran]:
    """Run programs, several at once, and yield how each ended, in order. Arguments as of `run`."""
    with ThreadPoolExecutor(at_once) as pool:
        yield from pool.map(lambda program: run(program, limits), programs)
