"""Run programs that a model wrote where they can do nothing but compute.

Each program gets a process of its own, in which the Linux kernel refuses everything but computing: no file is opened,
no socket, no process, no signal sent. Time and memory are limited, the environment is empty, printing is dropped.
Its tests run in another such process, which has nothing of the program but what its entry point answers, as plain data:
a program cannot read, write or skip its verdict. What is promised and what is not: docs/security.md.
"""

from __future__ import annotations

import json
import os
import platform
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from mft_ray.errors import UserError

_SCRIPT = Path(__file__).with_name("confined.py")
_CONFINED, _PASSED = b"confined\n", b"passed"
_MOST, _REASON = 4096, 300  # bytes that are listened to, and told
# Python starts and imports before the program's own time begins.
_START_S = 30.0


@dataclass(frozen=True)
class Limits:
    """What a program may use, and its tests.

    Attributes:
        seconds: seconds of wall time, for both together.
        megabytes: megabytes of address space; Python with NumPy takes some 300 of them.
    """

    seconds: float = 10.0
    megabytes: int = 2048


@dataclass(frozen=True)
class Problem:
    """A program and its tests.

    Attributes:
        program: source that defines the entry point.
        tests: source that defines ``check(candidate)``, which raises an error where the candidate is wrong.
        entry_point: name of the function that is tested.
        given: source of definitions that tests use beside the entry point; trusted as the tests are.
    """

    program: str
    tests: str
    entry_point: str
    given: str = ""


@dataclass(frozen=True)
class Ran:
    """How a program's tests ended.

    Attributes:
        passed: whether they ran to their end without an error.
        reason: why not, in a line; empty if it passed.
    """

    passed: bool
    reason: str = ""


def run(problem: Problem, limits: Limits | None = None) -> Ran:
    """Run a program's tests and say whether they passed.

    Args:
        problem: the program and its tests.
        limits: what each may use.

    Raises:
        UserError: this machine cannot confine a program; it was not run.
    """
    limits = limits or Limits()
    request = {**asdict(problem), **asdict(limits), "parent": os.getpid()}
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
        except TimeoutError:
            return Ran(False, f"it took longer than {limits.seconds:g} s")
        finally:
            # The process of the tests and that of the program, before the first is waited for: its number is its own.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        if not said.startswith(_CONFINED):
            raise UserError(_unconfined(process))
    said = said.removeprefix(_CONFINED)
    if said == _PASSED:
        return Ran(True)
    if not said:  # the kernel ends what uses up its processor time
        return Ran(False, f"it took longer than {limits.seconds:g} s")
    return Ran(False, " ".join(said[:_REASON].decode(errors="replace").split()))


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


def run_all(problems: Sequence[Problem], limits: Limits | None = None, at_once: int = 2) -> Iterator[Ran]:
    """Run programs' tests, several at once, and yield how each ended, in order. Arguments as of `run`."""
    with ThreadPoolExecutor(at_once) as pool:
        yield from pool.map(lambda problem: run(problem, limits), problems)
