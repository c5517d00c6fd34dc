"""Lines that a person reads while something long goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_kept: list[Path] = []


def log(text: str) -> None:
    """Print one line of progress, with the time, at once; keep it where `kept_log` says."""
    now = time.strftime("%H:%M:%S")
    print(f"[{now}] {text}", flush=True)
    for path in _kept[-1:]:
        # It stands on the screen: where the disk is full, what must be kept will say so.
        with suppress(OSError), path.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d')} {now} {text}\n")


@contextmanager
def kept_log(path: Path) -> Iterator[None]:
    """Add every line of progress to a file as well, with the date, for a while.

    Args:
        path: path of the file; it is made, or goes on.
    """
    _kept.append(path)
    try:
        yield
    finally:
        _kept.remove(path)
