"""Signs of life that a worker gives while it is at a job, and the stack that it leaves where it gives none."""

from __future__ import annotations

import faulthandler
import re
import time
from collections.abc import Callable
from pathlib import Path

# Told what the worker is doing, and for how many seconds it may now be silent; None: for as long as it likes.
Tell = Callable[[str, float | None], object]
# Told what the worker goes on to do.
Alive = Callable[[str], object]

# How long one thing may take: so many times as long as it ever has, but so long at the least; where it has not been
# done before, as long as the first of it may take: a large model is read from slow storage, or kernels are compiled.
TIMES, LEAST_S, FIRST_S = 10.0, 300.0, 1800.0
_TELL_EVERY_S = 5.0

_THREAD = re.compile(r"^(?:Current thread|Thread) ", re.MULTILINE)
_FRAME = re.compile(r'^  File "(?P<file>[^"]*)", line (?P<line>\d+) in (?P<function>.*)$', re.MULTILINE)
_FRAMES = 4


def unheard(doing: str) -> None:
    """Take no notice: for what is not watched."""


def tell_every(limit: float) -> float:
    """Return how many seconds apart a worker tells what it does, where it may be silent for so many."""
    return min(_TELL_EVERY_S, limit / 4)


class Heartbeat:
    """A worker's signs of life. Each says what is done next; nothing else may take long.

    Where the next one does not come in time, a thread that needs nothing of Python's writes the stacks of all threads.

    Args:
        tell: told of a sign, not more often than every few seconds while the same is being done.
        stacks: file for the stacks.
    """

    def __init__(self, tell: Tell, stacks: Path) -> None:
        self._tell = tell
        stacks.parent.mkdir(parents=True, exist_ok=True)
        self._file = stacks.open("w", encoding="utf-8")
        self._longest: dict[str, float] = {}
        self._fixed: float | None = None
        self._doing: str | None = None
        self._last = self._told = 0.0

    def begin(self, limit_s: float | None) -> None:
        """Begin a job.

        Args:
            limit_s: seconds that anything may take; None goes by how long it has taken before.
        """
        self._fixed, self._doing = limit_s, None
        self("begins its job")

    def __call__(self, doing: str) -> None:
        """Give a sign.

        Args:
            doing: what is done next, as in "the worker ...".
        """
        now, changed = time.monotonic(), doing != self._doing
        if self._doing is not None:
            self._longest[self._doing] = max(self._longest.get(self._doing, 0.0), now - self._last)
        self._doing, self._last = doing, now
        limit = self._limit(doing)
        if changed or now - self._told >= tell_every(limit):
            self._told = now
            faulthandler.dump_traceback_later(limit, file=self._file)
            self._tell(doing, limit)

    def rest(self) -> None:
        """Have nothing to do."""
        self._doing = None
        faulthandler.cancel_dump_traceback_later()
        self._tell("waits for a job", None)

    def _limit(self, doing: str) -> float:
        if self._fixed is not None:
            return self._fixed
        longest = self._longest.get(doing)
        return FIRST_S if longest is None else max(LEAST_S, TIMES * longest)


def innermost(stacks: str, within: str = "worker_loop.py") -> str | None:
    """Return in one line where the thread that does the jobs is, innermost frame first; None if no stack shows it.

    Args:
        stacks: as `faulthandler` writes them, the newest last.
        within: file that the thread's function is in.
    """
    for block in reversed(_THREAD.split(stacks)):
        frames = list(_FRAME.finditer(block))
        if any(Path(frame["file"]).name == within for frame in frames):
            shown = frames[:_FRAMES]
            return " < ".join(f"{frame['function']} ({Path(frame['file']).name}:{frame['line']})" for frame in shown)
    return None
