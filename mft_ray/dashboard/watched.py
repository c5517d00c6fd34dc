"""One look at a run for all who watch it, however many: files are read when they have changed, once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio

from mft_ray.runs.live.snapshot import Live, read_live, state_of

_LOOK_S = 1.0

State = tuple[tuple[str, int, int], ...]


class Watched:
    """A run folder that is looked at about once a second while somebody watches.

    Args:
        root: run folder.
        also: what else, beside the folder, a page shows and may change, in words.
    """

    def __init__(self, root: Path, also: Callable[[], str]) -> None:
        self.root, self.also = root, also
        self._lock = threading.Lock()
        self._read: tuple[State, Live] | None = None
        self._state: State = ()
        self._looked = 0.0

    def now(self) -> Live:
        """Return the run as it is.

        Raises:
            UserError: it is no run folder, or a file in it is broken.
        """
        with self._lock:
            state = state_of(self.root)
            if self._read is None or self._read[0] != state:
                self._read = state, read_live(self.root)
            return self._read[1]

    async def changes(self, over: anyio.Event) -> AsyncIterator[dict[str, str]]:
        """Yield an event at once, and one whenever the run has changed.

        Args:
            over: set when the server ends.
        """
        known: tuple[State, str] | None = None
        while not over.is_set():
            state = await asyncio.to_thread(self._look), self.also()
            if state != known:
                known = state
                yield {"event": "changed", "data": "now"}
            with anyio.move_on_after(_LOOK_S):
                await over.wait()

    def _look(self) -> State:
        """Return the state of the run, looked up no more than once for all who ask within a moment."""
        now = time.monotonic()
        with self._lock:
            if now - self._looked > _LOOK_S / 2:
                self._state, self._looked = state_of(self.root), now
            return self._state
