"""Lines that a person reads while something long goes on, and where they go."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import BinaryIO, TextIO

_kept: list[Path] = []
_printers: list[Callable[[str], object]] = []
_plain = True  # whether lines come as they always do: not --quiet, not --json
_quiet = False
_own = False  # whether this process does nothing but one command


def log(text: str) -> None:
    """Print one line of progress, with the time, at once; keep it where `kept_log` says."""
    _say(text, shown=not _quiet)


def log_warning(text: str) -> None:
    """Print a line of what has gone wrong, or is not as it was asked for: as `log`, and also where that is quiet."""
    _say(text, shown=True)


def _say(text: str, shown: bool) -> None:
    now = time.strftime("%H:%M:%S")
    if shown:
        (_printers[-1] if _printers else _print)(f"[{now}] {text}")
    for path in _kept[-1:]:
        # It stands on the screen: where the disk is full, what must be kept will say so.
        with suppress(OSError), path.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d')} {now} {text}\n")


def _print(line: str) -> None:
    print(line, flush=True)


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


@contextmanager
def printed_by(printer: Callable[[str], object]) -> Iterator[None]:
    """Have something else print lines of progress for a while, such as a table that they are to stand above.

    Args:
        printer: called with each line, from any thread.
    """
    _printers.append(printer)
    try:
        yield
    finally:
        _printers.remove(printer)


@contextmanager
def command_output(quiet: bool = False, document: bool = False) -> Iterator[None]:
    """Print as a command was asked to, while it is what this process does.

    Args:
        quiet: whether lines of progress are left out; warnings are not.
        document: whether stdout is for one document, printed afterwards; all else goes to stderr.
    """
    global _plain, _quiet, _own
    before = _plain, _quiet, _own
    _plain, _quiet, _own = not (quiet or document), quiet, True
    try:
        if document:
            with redirect_stdout(sys.stderr), _descriptors(2, 1):
                yield
        else:
            yield
    finally:
        _plain, _quiet, _own = before


def drawable() -> bool:
    """Say whether somebody looks at a terminal that can be drawn on."""
    if not _plain or os.environ.get("CI") or os.environ.get("TERM", "dumb") in ("dumb", "unknown"):
        return False
    return _descriptor(sys.stdout) is not None and sys.stdout.isatty()


@contextmanager
def chatter_in(path: Path) -> Iterator[None]:
    """Keep what libraries say, in Python or below it, out of sight and in a file, while only we print.

    Only where a command has the process for itself: in a program of somebody else's, all is left as it is.

    Args:
        path: path of the file; it goes on, and is not left empty.
    """
    file = _opened(path) if _own else None
    if file is None:
        yield
        return
    try:
        # What prints is us; all else writes to the descriptors, or to an object that was made over them.
        with file, _copy_of_stdout() as shown, redirect_stdout(shown), _descriptors(file.fileno(), 1, 2):
            yield
    finally:
        with suppress(OSError):
            if path.stat().st_size == 0:
                path.unlink()


def _opened(path: Path) -> BinaryIO | None:
    """Open a file to go on with; None where that cannot be, as on a disk that is full: then all stays in sight."""
    try:
        return path.open("ab")
    except OSError:
        return None


@contextmanager
def _copy_of_stdout() -> Iterator[TextIO]:
    """Context manager yielding a stream to where stdout goes now, whatever becomes of the descriptor."""
    number = _descriptor(sys.stdout)
    if number is None:  # of a test, or a notebook
        yield sys.stdout
        return
    with open(os.dup(number), "w", buffering=1, encoding=sys.stdout.encoding, errors=sys.stdout.errors) as copy:
        yield copy


@contextmanager
def _descriptors(to: int, *numbers: int) -> Iterator[None]:
    """Have descriptors of this process, and of those that it starts, lead elsewhere for a while."""
    saved: dict[int, int] = {}
    _flush()
    try:
        for number in numbers:
            with suppress(OSError):  # it is closed: nothing comes from there
                saved[number] = os.dup(number)
                os.dup2(to, number)
        yield
    finally:
        _flush()
        for number, copy in saved.items():
            os.dup2(copy, number)
            os.close(copy)


def _flush() -> None:
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None:
            with suppress(OSError, ValueError):
                stream.flush()


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError, AttributeError):
        return None
