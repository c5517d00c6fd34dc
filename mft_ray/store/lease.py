"""One process at a time works on a run in an object store, which has no locks: an object says who does, and since when.

Who works renews it every few seconds. Who comes and finds it waits whether it is renewed; if it is not, the run is
taken over. Two that come within the same second find out by reading what they wrote. What this cannot keep apart are a
process that stood still for longer than `STALE_S` (a laptop that slept, a host that was cut off) and then writes before
it looks, and whoever has taken over meanwhile: so it is looked at again right before the one object is written that
counts, and what remains is the moment between.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from uuid import uuid4

import psutil  # type: ignore[import-untyped]

from mft_ray.errors import UserError
from mft_ray.store.bucket import Bucket, StoreFailed
from mft_ray.store.manifest import LEASE, OWN

RENEW_S, STALE_S = 10.0, 35.0
_LOOK_S, _SETTLE_S = 2.0, 1.0
_READS, _PAUSE_S = 5, 0.3


@dataclass(frozen=True)
class Holder:
    """Who works on a run.

    Attributes:
        owner: what tells this session from any other.
        host: name of its host.
        pid: number of its process.
        space: what tells where process numbers mean the same: start of the kernel, and of the container.
        began: when the process began, by that kernel.
        turn: how often it was renewed.
    """

    owner: str
    host: str
    pid: int
    space: str
    began: float
    turn: int = 0

    @classmethod
    def me(cls) -> Holder:
        """Return a new one, of this process."""
        return cls(uuid4().hex, socket.gethostname(), os.getpid(), _space(), psutil.Process().create_time())

    def is_gone(self) -> bool:
        """Say whether it is known that its process has ended: of one elsewhere that is not known."""
        if self.space != _space():
            return False
        try:
            return bool(abs(psutil.Process(self.pid).create_time() - self.began) > 1)
        except psutil.NoSuchProcess:
            return True


class Lease:
    """The right to write into a run.

    Args:
        bucket: of the run.
        say: told what is waited for.
    """

    def __init__(self, bucket: Bucket, say: Callable[[str], object]) -> None:
        self._bucket, self._say, self._me = bucket, say, Holder.me()
        self.lost: str | None = None

    def take(self) -> None:
        """Take it.

        Raises:
            UserError: somebody else has it.
            StoreFailed: the store cannot be asked.
        """
        found = self._read()
        if found is not None and not found.is_gone() and not self._is_stale(found):
            raise UserError(
                f"Another process is working on {self._bucket.address}: {found.pid} on {found.host}. Wait for it to "
                "end, or give another run.dir."
            )
        self._write()
        time.sleep(_SETTLE_S)
        self._check()

    def renew(self) -> None:
        """Say that this process still works.

        Raises:
            StoreFailed: somebody else has taken it over, or the store cannot be asked.
        """
        self._check()
        self._me = replace(self._me, turn=self._me.turn + 1)
        self._write()

    def check(self) -> None:
        """Look whether it is still this process's.

        Raises:
            StoreFailed: it is not, or the store cannot be asked.
        """
        self._check()

    def give_back(self) -> None:
        """Let others have it."""
        found = self._read()
        if found is not None and found.owner == self._me.owner:
            self._bucket.remove([LEASE])

    def _check(self) -> None:
        found = self._read()
        if found is None or found.owner != self._me.owner:
            who = f"{found.pid} on {found.host}" if found else "nobody"
            self.lost = (
                f"{self._bucket.address} is no longer this process's: it is held by {who}. Nothing more is written "
                "there, so that two searches do not mix"
            )
            failed = StoreFailed(self.lost)
            failed.final = True
            raise failed

    def _is_stale(self, found: Holder) -> bool:
        """Say whether it was not renewed for as long as that may take, by the store's clock or by ours."""
        if self._age() > STALE_S:
            return True
        who = f"{found.pid} on {found.host}"
        self._say(f"{self._bucket.address} is held by {who}: waiting up to {STALE_S:.0f} s for a sign of it")
        began = time.monotonic()
        while time.monotonic() - began < STALE_S:
            time.sleep(_LOOK_S)
            now = self._read()
            if now is None:
                return True
            if now != found:
                return False
        return True

    def _age(self) -> float:
        """Return how old it is, in seconds by the store's clock: what is written now tells the time there."""
        probe = f"{OWN}/time-{self._me.owner}"
        self._bucket.write(probe, b"what is the time?")
        now, then = self._bucket.found(probe), self._bucket.found(LEASE)
        self._bucket.remove([probe])
        return now.changed - then.changed if now and then else 0.0

    def _write(self) -> None:
        self._bucket.write(LEASE, json.dumps(asdict(self._me)).encode())

    def _read(self) -> Holder | None:
        for _ in range(_READS):
            content = self._bucket.read(LEASE)
            if content is None:
                return None
            try:
                return Holder(**json.loads(content))
            except (ValueError, TypeError):  # who reads while it is replaced may get a part of it
                time.sleep(_PAUSE_S)
        return None  # of another version, or damaged: it says nothing that can be waited for


def _space() -> str:
    parts = [socket.gethostname()]
    try:
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    except OSError:  # not Linux: one host is one space
        parts.append(str(psutil.boot_time()))
    return " ".join(parts)
