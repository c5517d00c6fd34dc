"""Trackers at work beside a search: each in a thread of its own, none in the search's way."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from mft_ray.config import Config
from mft_ray.runs.folder import RunFolder
from mft_ray.tracking.snapshot import Snapshot, SnapshotReader
from mft_ray.utils.console import log, log_warning

_EVERY_S = 3.0
_PAUSE_S = (15.0, 120.0)  # after a failure: at first, and at most
_LAST_S = 90.0  # for what is still to be sent when the search is over
_MAX_REASON_CHARS = 200
_SECRETS = ("KEY", "TOKEN", "PASSWORD", "SECRET")


class Tracker(Protocol):
    """Something that shows a search."""

    name: str

    def sync(self, snapshot: Snapshot, final: bool) -> None:
        """Show what is new; what has failed is tried again with the next snapshot."""

    def close(self) -> None:
        """Let go of what is open."""


class Follower:
    """Tells a tracker every few seconds what is new in a run folder.

    A tracker that fails does not end the search: that is said once, tried again, and counted at the end.

    Args:
        tracker: it is used in the follower's own thread only.
        reader: reader of the run folder.
        resume: what a person calls to have what is missing sent.

    Attributes:
        over: set when the search has come to its end.
    """

    def __init__(self, tracker: Tracker, reader: SnapshotReader, resume: str) -> None:
        self._tracker, self._reader, self._resume = tracker, reader, resume
        self.over = threading.Event()
        self._failures, self._last = 0, ""
        self._whole = False
        self._thread = threading.Thread(target=self._follow, name=f"tracking: {tracker.name}", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """Send what is still to be sent, wait for that a while, and say what has failed."""
        self.over.set()
        self._thread.join(_LAST_S)
        name, times = self._tracker.name, f"{self._failures} time{'' if self._failures == 1 else 's'}"
        if self._thread.is_alive():
            log_warning(f"{name} has not taken everything in {_LAST_S:.0f} s: {self._resume} sends what is missing")
        elif not self._whole:
            log_warning(
                f"{name} failed {times}, and something is missing there ({self._last}): {self._resume} sends it"
            )
        elif self._failures:
            log(f"{name} failed {times}; everything is there now")

    def _follow(self) -> None:
        pause = _EVERY_S
        while not self.over.wait(pause):
            earlier = self._failures
            self._attempt(final=False)
            if self._failures == earlier:
                pause = _EVERY_S
            else:
                pause = _PAUSE_S[0] if pause == _EVERY_S else min(2 * pause, _PAUSE_S[1])
        self._whole = self._attempt(final=True)
        try:
            self._tracker.close()
        except Exception as error:
            self._failed(error)
            self._whole = False

    def _attempt(self, final: bool) -> bool:
        try:
            self._tracker.sync(self._reader.read(), final)
        except Exception as error:  # whatever a library or a network makes of it
            self._failed(error)
            return False
        return True

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        self._last = without_secrets(error)
        if self._failures == 1:
            log_warning(f"{self._tracker.name} fails: {self._last}. The search goes on; what is missing is sent later")


@contextmanager
def followed(config: Config, folder: RunFolder) -> Iterator[None]:
    """Context manager during which a search is shown wherever its configuration asks for.

    Args:
        config: configuration of the search.
        folder: run folder.
    """
    method, resume = config.search.method, f"--resume {folder.named}"
    followers = [Follower(tracker, SnapshotReader(folder, method), resume) for tracker in _trackers(config, folder)]
    for each in followers:
        each.start()
    try:
        yield
    finally:
        for each in followers:
            each.over.set()  # all of them send their last while one is waited for
        for each in followers:
            each.stop()


def _trackers(config: Config, folder: RunFolder) -> Iterator[Tracker]:
    tracking, label = config.tracking, config.run.name
    if tracking.tensorboard:
        from mft_ray.tracking.tensorboard import TensorBoard

        yield TensorBoard(folder.tensorboard)
    if tracking.wandb is not None:
        from mft_ray.tracking.wandb_runs import Wandb

        yield Wandb(tracking.wandb, folder, label)
    if tracking.mlflow is not None:
        from mft_ray.tracking.mlflow_server import Mlflow

        yield Mlflow(tracking.mlflow, folder, label)


def without_secrets(error: Exception) -> str:
    """Return what an error says, in one line, without values of this process's secrets.

    Args:
        error: any.
    """
    text = " ".join(f"{type(error).__name__}: {error}".split())
    for name, value in os.environ.items():
        if len(value) > 3 and any(word in name.upper() for word in _SECRETS):
            text = text.replace(value, "***")
    return text if len(text) <= _MAX_REASON_CHARS else f"{text[:_MAX_REASON_CHARS]}…"
