"""While a run is worked on: its store is kept up to date in the background, and its lease renewed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from mft_ray.errors import RunFailed
from mft_ray.store.bucket import Bucket, StoreFailed
from mft_ray.store.lease import RENEW_S, Lease
from mft_ray.store.scratch import Scratch
from mft_ray.store.snapshot import Busy
from mft_ray.store.sync import Pushed, push
from mft_ray.utils.console import log_warning

# How often the last state of a run is tried to be taken, where something still writes.
_LAST_TRIES = 10
# After how many pushes that found no moment in which nothing was written it is said.
_BUSY_TOLD = 5


class Keeper:
    """Threads that push a run, and renew its lease, until they are told to end.

    Args:
        scratch: copy on this machine.
        bucket: of the run.
        lease: held by this process.
        every_s: seconds between the end of a push and the next one.
        begun: says whether there is anything yet that is worth a push.
        pushed: told of each.
    """

    def __init__(
        self,
        scratch: Scratch,
        bucket: Bucket,
        lease: Lease,
        every_s: float,
        begun: Callable[[], bool],
        pushed: Callable[[Pushed], object],
    ) -> None:
        self._scratch, self._bucket, self._lease = scratch, bucket, lease
        self._begun, self._pushed = begun, pushed
        self._over = threading.Event()
        self.failed: Exception | None = None
        self._main = threading.main_thread() if threading.current_thread() is threading.main_thread() else None
        works: dict[str, tuple[Callable[[], object], float]] = {
            "push": (self._push, every_s),
            "lease": (lease.renew, RENEW_S),
        }
        self._threads = [
            threading.Thread(target=self._repeat, args=work, name=f"store-{name}", daemon=True)
            for name, work in works.items()
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Wait for what is being carried, and carry no more."""
        self._over.set()
        try:
            for thread in self._threads:
                thread.join()
        except BaseException:
            self._bucket.give_up()
            raise

    def push_last(self) -> None:
        """Have the store be what the run folder is at last.

        Raises:
            StoreFailed: it cannot be.
        """
        for tries in range(1, _LAST_TRIES + 1):
            try:
                return self._push(last=True)
            except Busy as error:
                if tries == _LAST_TRIES:
                    raise StoreFailed(str(error)) from error

    def _push(self, last: bool = False) -> None:
        done = push(self._scratch, self._bucket, self._lease.check) if self._begun() else None
        if done is not None or (last and self._begun()):
            self._pushed(replace(done or Pushed("", 0, 0), last=last))

    def _repeat(self, work: Callable[[], object], every_s: float) -> None:
        busy = 0
        while not self._over.wait(every_s):
            try:
                work()
                busy = 0
            except Busy as error:
                busy += 1
                if busy == _BUSY_TOLD:
                    log_warning(f"{error}, {busy} times in a row: {self._scratch.address} is behind until it has not")
            except Exception as error:  # of the store, or a disk that is full: a search that goes on would be lost
                self.failed = self.failed or error
                self._interrupt()
                return

    def _interrupt(self) -> None:
        """End what the main thread does, as Ctrl-C would: in order, with what is finished kept."""
        if self._main is not None and self._main.ident is not None and not self._over.is_set():
            signal.pthread_kill(self._main.ident, signal.SIGINT)


@contextmanager
def kept(
    scratch: Scratch,
    bucket: Bucket,
    lease: Lease,
    every_s: float,
    begun: Callable[[], bool],
    pushed: Callable[[Pushed], object],
) -> Iterator[None]:
    """Context manager during which a store follows a run folder, and after which it is the same.

    Arguments as of `Keeper`.

    Raises:
        RunFailed: the store did not do what it was asked, and what was worked on was ended for it, or could not be
            carried at the end.
    """
    keeper = Keeper(scratch, bucket, lease, every_s, begun, pushed)
    keeper.start()
    try:
        yield
    except BaseException as error:
        keeper.end()
        if keeper.failed is not None and isinstance(error, KeyboardInterrupt):
            raise RunFailed(_explained(keeper.failed, scratch, lease)) from error
        try:
            keeper.push_last()
        except StoreFailed as failed:  # beside what has ended it
            log_warning(_explained(failed, scratch, lease))
        raise
    keeper.end()
    try:
        if keeper.failed is not None:
            raise keeper.failed
        keeper.push_last()
    except StoreFailed as failed:
        raise RunFailed(_explained(failed, scratch, lease)) from failed


def _explained(failed: Exception, scratch: Scratch, lease: Lease) -> str:
    reason = str(failed).rstrip(".")
    if lease.lost:
        return (
            f"{reason}. What this process did since its last push is in {scratch.run} alone, and is replaced by what "
            "is in the store when the run is next gone on with here."
        )
    return (
        f"{reason}. What is finished is kept in {scratch.run}; the store has the run as it was when it last answered. "
        f"Once the cause is gone, --resume {scratch.address} on this machine goes on with all of it, and on another "
        "one with what is in the store."
    )
