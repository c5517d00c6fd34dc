"""A wire between a host and the others that takes its time and loses frames, a program: ``relay.py NAME PID FOLDER``.

It runs where the wire ends that the hosts share. Of a device there, NAME, and one of the host's, wire, each gets the
frames that are sent into the other. What happens to them on the way FOLDER/wire.json says, which may change at any
time; FOLDER/frames.json has what holds, and how many there were. The kernel could do so (netem), where it was built in.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import random
import select
import struct
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path

SETTINGS, COUNTS = "wire.json", "frames.json"
TUN = "/dev/net/tun"
_TUNSETIFF, _TAP, _BARE = 0x400454CA, 0x0002, 0x1000  # linux/if_tun.h
_NEWNET = 0x40000000
_LONGEST = 65536  # bytes of a frame
_LOOK_S = 0.2


@dataclass
class Wire:
    """What happens to frames.

    Attributes:
        delay_s: how long each takes.
        loss: the part of them that gets lost.
    """

    delay_s: float = 0.0
    loss: float = 0.0


@dataclass
class Frames:
    """How many there were since the wire last changed.

    Attributes:
        wire: what holds.
        passed: that came through.
        lost: that did not.
    """

    wire: Wire = field(default_factory=Wire)
    passed: int = 0
    lost: int = 0

    @classmethod
    def load(cls, path: Path) -> Frames:
        content = json.loads(path.read_text())
        return cls(**{**content, "wire": Wire(**content["wire"])})


def device(name: str) -> int:
    """Make a network device in this process's network; return where its frames are read and written."""
    file = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TAP | _BARE))
    return file


def enter_network(pid: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/proc/{pid}/ns/net") as file:
        if libc.setns(file.fileno(), _NEWNET):
            raise OSError(ctypes.get_errno(), f"the network of process {pid}")


class Relay:
    """Frames on their way."""

    def __init__(self, ends: tuple[int, int], folder: Path) -> None:
        self._other = dict(zip(ends, reversed(ends), strict=True))
        self._folder = folder
        self._way: deque[tuple[float, int, bytes]] = deque()  # when each is due, and where; the first comes first
        self._chance = random.Random(0)
        self._frames, self._changed, self._looked = Frames(), 0, 0.0

    def run(self) -> None:
        while True:
            now = time.monotonic()
            if now - self._looked >= _LOOK_S:
                self._look(now)
            while self._way and self._way[0][0] <= now:
                _, end, frame = self._way.popleft()
                self._put(end, frame)
            until = min(self._way[0][0], self._looked + _LOOK_S) if self._way else self._looked + _LOOK_S
            for end in select.select(list(self._other), [], [], max(0.0, until - time.monotonic()))[0]:
                self._take(end)

    def _take(self, end: int) -> None:
        try:
            while True:
                frame = os.read(end, _LONGEST)
                if self._chance.random() < self._frames.wire.loss:
                    self._frames.lost += 1
                else:
                    self._way.append((time.monotonic() + self._frames.wire.delay_s, self._other[end], frame))
        except OSError:  # that was all
            return

    def _put(self, end: int, frame: bytes) -> None:
        try:
            os.write(end, frame)
            self._frames.passed += 1
        except OSError:  # it is unplugged
            self._frames.lost += 1

    def _look(self, now: float) -> None:
        self._looked = now
        settings = self._folder / SETTINGS
        if settings.exists() and settings.stat().st_mtime_ns != self._changed:
            self._changed = settings.stat().st_mtime_ns
            self._frames = Frames(Wire(**json.loads(settings.read_text())))
        replace(self._folder / COUNTS, json.dumps(asdict(self._frames)))


def replace(path: Path, text: str) -> None:
    """Write a file that somebody reads meanwhile."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


def main(name: str, pid: str, folder: Path) -> None:
    here = device(name)
    enter_network(pid)
    Relay((here, device("wire")), folder).run()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
