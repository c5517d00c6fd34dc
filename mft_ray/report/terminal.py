"""A search on a terminal while it goes on: where it stands, drawn below the lines of progress, which scroll above."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue

from rich.console import Console, Group, RenderableType
from rich.live import Live as Drawing
from rich.text import Text

from mft_ray.report.leaderboard import table
from mft_ray.runs.live.snapshot import Live, Phase, read_live
from mft_ray.runs.records import Point
from mft_ray.utils.console import drawable, log_warning, printed_by
from mft_ray.utils.formatting import Unit, unit

# Drawing takes a second's half at most once, and of the processor this part at most, however large a search is.
_EVERY_S = 0.5
_PART = 0.05
# A file can go between two looks, as a trial's does that is begun anew.
_TRIES = 3
_BEST = 5  # trials beside those at work
_OTHER_LINES = 12  # of the drawing, that are no trial's
_END_S = 5.0


class Outlook:
    """What the search alone knows and no file says; written by it, read by whoever draws.

    Attributes:
        left: time and budget that are left, in words.
        waits: what trials wait for, in words; empty where they do not.
    """

    left = ""
    waits = ""


@contextmanager
def drawn(folder: Path, outlook: Outlook) -> Iterator[None]:
    """Draw a search for a while, if stdout is a terminal. Whatever happens to the drawing, the search goes on.

    Args:
        folder: run folder.
        outlook: what else there is to say.
    """
    if not drawable():
        yield
        return
    screen = _Screen(folder, outlook)
    try:
        with printed_by(screen.line):
            screen.begin()
            try:
                yield
            finally:
                screen.end()
    finally:
        screen.print_rest()


def picture(live: Live, outlook: Outlook, height: int = 40, width: int = 120) -> RenderableType:
    """Return what is drawn of a search.

    Args:
        live: the run at this moment.
        outlook: what else there is to say.
        height: number of lines there are.
        width: number of columns there are.
    """
    parts: list[RenderableType] = [Text(_stage(live), style="bold")]
    if live.run.trials:
        few = max(1, min(_BEST, height - _OTHER_LINES - len(live.running)))
        # Before the verdict no trial is judged: the mark is of the best so far.
        parts.append(table(live.run, few, also=live.running, width=width, whole=False))
    said = [("", line) for line in _while_training(live)]
    for name, text in (*said, ("left", outlook.left), ("waits", outlook.waits), ("asked", _asked(live))):
        if text:
            parts.append(Text(f"{name:<6}{text}", no_wrap=True, overflow="ellipsis"))
    return Group(*parts)


class _Screen:
    """A thread that draws, and prints the lines above what it draws.

    Who has a line to print leaves it for the thread: a terminal that stands still holds nobody up, and a signal's
    handler may print whatever it has interrupted.
    """

    def __init__(self, folder: Path, outlook: Outlook) -> None:
        self.folder, self.outlook = folder, outlook
        self.console = Console(file=sys.stdout)
        # What libraries print on stderr is in a file; where it is not, it stands above too.
        errors = sys.stderr is not None and sys.stderr.isatty()
        self.drawing = Drawing(console=self.console, auto_refresh=False, transient=True, redirect_stderr=errors)
        self.lines: SimpleQueue[str | None] = SimpleQueue()  # None: it is over
        self.over = False
        self.thread = threading.Thread(target=self._draw, daemon=True, name="terminal")

    def begin(self) -> None:
        self.thread.start()

    def end(self) -> None:
        self.lines.put(None)
        self.thread.join(_END_S)  # it wipes off what it has drawn
        self.over = True

    def line(self, text: str) -> None:
        if self.over:
            print(text, flush=True)
        else:
            self.lines.put(text)

    def print_rest(self) -> None:
        """Print what the thread has not, in order."""
        with suppress(Empty):
            while True:
                if text := self.lines.get_nowait():
                    print(text, flush=True)

    def _draw(self) -> None:
        try:
            with self.drawing:
                self._draw_until_over()
        except Exception as error:
            self.over = True
            self.print_rest()
            log_warning(f"the search is no longer drawn here, and goes on: {type(error).__name__}: {error}")

    def _draw_until_over(self) -> None:
        failed, due = 0, time.monotonic()
        while True:
            try:
                text = self.lines.get(timeout=max(0.0, due - time.monotonic()))
            except Empty:
                text = ""
            if text is None:
                return
            if text:  # as it is: neither coloured nor broken
                self.console.print(Text(text), soft_wrap=True)
            began = time.monotonic()
            if began < due:
                continue
            try:
                width, height = self.console.size
                self.drawing.update(picture(read_live(self.folder), self.outlook, height, width), refresh=True)
                failed = 0
            except Exception:
                failed += 1
                if failed == _TRIES:
                    raise
            now = time.monotonic()
            due = now + max(_EVERY_S, (now - began) / _PART)


def _stage(live: Live) -> str:
    run = live.run
    shown, monitored = unit(run.baseline.metric), unit(run.while_training.baseline.metric)
    parts = [str(live.phase) + ("; ends after the trials at work" if live.ends else "")]
    if live.phase is Phase.FFT:
        parts += _last(run.curves.fft, "FFT", monitored)
    elif (fft := run.baseline.validation.score) is not None:
        parts.append(f"FFT {shown.score(fft)}")
    if live.phase is Phase.TRIALS:
        parts.append(f"{len(live.running)} trials at work, {live.ended} of {live.wanted} ended")
    if live.phase is Phase.VERDICT:
        parts += _last(run.curves.continued, "FFT continued", monitored)
    return " · ".join(parts)


def _last(points: list[Point], name: str, shown: Unit) -> list[str]:
    return [f"{name}: step {points[-1].step:,}, {shown.score(points[-1].score)}"] if points else []


def _while_training(live: Live) -> list[str]:
    """Return how trials at work stand, where the leaderboard's score comes at their ends only."""
    if not live.run.scored_at_end:
        return []
    run = live.run.while_training
    shown, fft, lines = unit(run.baseline.metric), run.baseline.validation.score, []
    for name in sorted(live.running):
        if points := run.curves.trials.get(name):
            score = points[-1].score
            delta = None if score is None or fft is None else score - fft
            # FFT as it is says nothing of a model whose weights are in fewer bits.
            held = run.unselected_dtype
            against = f" with weights in {held}" if held else f", {shown.delta(delta)} against FFT"
            line = f"{name} step {points[-1].step:,}: {shown.score(score)}{against}"
            lines.append(f"{line} ({shown.label.lower()})")
    return lines


def _asked(live: Live) -> str:
    parts = [f"trial {name} ends with its next evaluation" for name in sorted(live.asked)]
    if live.queue:
        parts.append(f"{len(live.queue)} configurations wait to be tried")
    return "; ".join(parts)
