"""A file system that behaves as one of several hosts does over NFS, each process being a host of its own.

That is harder than what is real, where the processes of a host share what they know:

- what a process has learned of a name it believes for `BELIEVED_S`: that there is none, that there is one, when it was
  changed, and what a folder holds. What it changes itself it knows, and opening a file asks the server;
- who has a file open that another process removes or replaces gets ESTALE with the next call; one's own stays, as
  `.nfs…`, until it is closed;
- every fsync takes `FSYNC_S`.

Locks hold between processes, as with NFS 4. Sizes and contents are never old, since the kernel's pages are those of all
processes here; nor does a host lose its connection.

    python shared_storage.py FOLDER MOUNT    # until it is unmounted; what was made is written to FOLDER.made
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

BELIEVED_S, FSYNC_S = 3.0, 0.02
_START_S = 30
# The kernel is to believe nothing: it is the same for all processes.
MOUNTED = {"foreground": True, "attr_timeout": 0, "entry_timeout": 0, "negative_timeout": 0, "hard_remove": True}
_KEYS = ("st_mode", "st_size", "st_nlink", "st_uid", "st_gid", "st_atime_ns", "st_mtime_ns", "st_ctime_ns", "st_blocks")

Attributes = dict[str, Any]


@dataclass
class Opened:
    """A file that a process has open.

    Attributes:
        process: whose it is.
        inode: of the file in the folder behind.
        stale: whether another process has removed it.
        removed: name that it has until it is closed, where its own process has removed it.
    """

    process: int
    inode: tuple[int, int]
    stale: bool = False
    removed: str | None = None


@dataclass
class Beliefs:
    """What a process knows, and since when; an errno stands for what is not there."""

    attributes: dict[str, tuple[float, Attributes | int]] = field(default_factory=dict)
    listings: dict[str, tuple[float, list[str]]] = field(default_factory=dict)

    def forget(self, path: str) -> None:
        """Ask the server for a name, and what its folder holds, the next time."""
        self.attributes.pop(path, None)
        for each in (path, os.path.dirname(path)):
            self.listings.pop(each, None)
        self.attributes.pop(os.path.dirname(path), None)


class Shared:
    """The operations, over a folder behind."""

    use_ns = True

    def __init__(self, behind: str, made: str) -> None:
        self._behind, self._made = behind, made
        self._lock, self._numbers = threading.RLock(), itertools.count()
        self._opened: dict[int, Opened] = {}
        self._known: dict[int, Beliefs] = {}
        self._processes: dict[int, int] = {}

    def getattr(self, path: str, fh: int | None = None) -> Attributes:
        if fh is not None and fh in self._opened:
            self._check(fh)
            return _attributes(os.fstat(fh))
        mine, now = self._mine(), time.monotonic()
        since, found = mine.attributes.get(path, (-1.0, errno.ENOENT))
        if since < now - BELIEVED_S or since < 0:
            found = self._asked(path)
            mine.attributes[path] = now, found
        if isinstance(found, int):
            raise OSError(found, os.strerror(found))
        with suppress(OSError):  # see the top
            real = os.lstat(self._behind + path)
            found = {**found, "st_size": real.st_size, "st_blocks": real.st_blocks}
        return found

    def readdir(self, path: str, fh: int) -> list[str]:
        mine, now = self._mine(), time.monotonic()
        since, names = mine.listings.get(path, (-1.0, []))
        if since < now - BELIEVED_S or since < 0:
            names = os.listdir(self._behind + path)
            mine.listings[path] = now, names
        return [".", "..", *names]

    def open(self, path: str, flags: int) -> int:
        self._mine().forget(path)
        return self._open(path, flags)

    def create(self, path: str, mode: int, flags: int) -> int:
        with open(self._made, "a") as made:
            made.write(path + "\n")
        return self._changed(path, lambda: self._open(path, flags | os.O_CREAT, mode))

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        self._check(fh)
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        self._check(fh)
        self._mine().attributes.pop(path, None)
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> None:
        self._changed(path, lambda: os.truncate(self._behind + path, length))

    def flush(self, path: str, fh: int) -> None:
        self._check(fh)

    def fsync(self, path: str, datasync: int, fh: int) -> None:
        self._check(fh)
        time.sleep(FSYNC_S)
        os.fsync(fh)

    def fsyncdir(self, path: str, datasync: int, fh: int) -> None:
        time.sleep(FSYNC_S)

    def release(self, path: str, fh: int) -> None:
        with self._lock:
            gone = self._opened.pop(fh)
            os.close(fh)
            if gone.removed and not any(other.removed == gone.removed for other in self._opened.values()):
                with suppress(FileNotFoundError):
                    os.unlink(gone.removed)

    def unlink(self, path: str) -> None:
        def remove() -> None:
            if not self._kept_by_its_own(path):
                os.unlink(self._behind + path)

        self._changed(path, remove)

    def rename(self, old: str, new: str) -> None:
        def move() -> None:
            if os.path.lexists(self._behind + new) and not os.path.samefile(self._behind + old, self._behind + new):
                self._kept_by_its_own(new)
            os.rename(self._behind + old, self._behind + new)

        self._changed(old, lambda: self._changed(new, move))
        mine = self._mine()  # of a folder: what was in it
        for path in [each for each in mine.attributes if each.startswith((f"{old}/", f"{new}/"))]:
            mine.forget(path)

    def mkdir(self, path: str, mode: int) -> None:
        self._changed(path, lambda: os.mkdir(self._behind + path, mode))

    def rmdir(self, path: str) -> None:
        self._changed(path, lambda: os.rmdir(self._behind + path))

    def symlink(self, target: str, source: str) -> None:
        self._changed(target, lambda: os.symlink(source, self._behind + target))

    def link(self, target: str, source: str) -> None:
        self._changed(target, lambda: os.link(self._behind + source, self._behind + target))

    def readlink(self, path: str) -> str:
        return os.readlink(self._behind + path)

    def chmod(self, path: str, mode: int) -> None:
        self._changed(path, lambda: os.chmod(self._behind + path, mode))

    def chown(self, path: str, uid: int, gid: int) -> None:
        self._changed(path, lambda: os.chown(self._behind + path, uid, gid, follow_symlinks=False))

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> None:
        self._changed(path, lambda: os.utime(self._behind + path, ns=times))

    def access(self, path: str, amode: int) -> None:
        if not os.access(self._behind + path, amode):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    def statfs(self, path: str) -> dict[str, int]:
        found = os.statvfs(self._behind + path)
        return {
            name: getattr(found, name)
            for name in ("f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_frsize", "f_namemax")
        }

    def _open(self, path: str, flags: int, mode: int = 0o666) -> int:
        opened = os.open(self._behind + path, flags & ~os.O_APPEND, mode)  # the kernel says where to write
        found = os.fstat(opened)
        with self._lock:
            self._opened[opened] = Opened(self._process(), (found.st_dev, found.st_ino))
        return opened

    def _check(self, fh: int) -> None:
        if self._opened[fh].stale:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def _kept_by_its_own(self, path: str) -> bool:
        """Have others lose a file that goes; keep it for its own process under another name, and say whether it was."""
        found, me = os.lstat(self._behind + path), self._process()
        with self._lock:
            holding = [each for each in self._opened.values() if each.inode == (found.st_dev, found.st_ino)]
            for each in holding:
                each.stale = each.process != me
            mine = [each for each in holding if each.process == me]
            if not mine:
                return False
            name = os.path.join(os.path.dirname(self._behind + path), f".nfs{next(self._numbers):08x}")
            os.rename(self._behind + path, name)
            for each in mine:
                each.removed = name
            return True

    def _changed(self, path: str, change: Any) -> Any:
        try:
            return change()
        finally:
            self._mine().forget(path)

    def _asked(self, path: str) -> Attributes | int:
        try:
            return _attributes(os.lstat(self._behind + path))
        except OSError as error:
            return error.errno or errno.EIO

    def _mine(self) -> Beliefs:
        return self._known.setdefault(self._process(), Beliefs())

    def _process(self) -> int:
        import mfusepy

        thread = mfusepy.fuse_get_context()[2]
        if thread not in self._processes:
            self._processes[thread] = thread
            with suppress(OSError, StopIteration), open(f"/proc/{thread}/status") as status:
                self._processes[thread] = int(next(line for line in status if line.startswith("Tgid:")).split()[1])
        return self._processes[thread]


def _attributes(found: os.stat_result) -> Attributes:
    return {key.removesuffix("_ns"): getattr(found, key) for key in _KEYS}


@contextmanager
def mounted(behind: Path) -> Iterator[Path]:
    """Yield a folder that shows another one as storage of several hosts would.

    The test is skipped where none can be mounted.

    Args:
        behind: must be there.
    """
    pytest.importorskip("mfusepy", reason="mfusepy, or Debian's fuse3, is not installed", exc_type=Exception)
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("this machine has no /dev/fuse, or nobody may use it")
    mount = Path(tempfile.mkdtemp(prefix="mft-ray-shared-", dir="/tmp"))
    with (mount.parent / f"{mount.name}.log").open("w+") as said:
        process = subprocess.Popen([sys.executable, __file__, str(behind), str(mount)], stdout=said, stderr=said)
        try:
            until = time.monotonic() + _START_S
            while not os.path.ismount(mount):
                if process.poll() is not None:
                    said.seek(0)
                    pytest.skip(f"no file system can be mounted here: {said.read()[-300:]}")
                assert time.monotonic() < until
                time.sleep(0.05)
            yield mount
        finally:
            # Lazily: something that a failed test has left may still hold it.
            subprocess.run(["fusermount3", "-u", "-z", str(mount)], check=False)
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            Path(said.name).unlink()
            shutil.rmtree(mount, ignore_errors=True)


def made_in(behind: Path) -> list[str]:
    """Return the paths of all files that were made, with those that are gone.

    Args:
        behind: as it was given to `mounted`.
    """
    return behind.with_name(f"{behind.name}.made").read_text().splitlines()


if __name__ == "__main__":
    import mfusepy

    class Operations(Shared, mfusepy.Operations):
        """As the library wants them."""

    mfusepy.FUSE(Operations(sys.argv[1], f"{sys.argv[1]}.made"), sys.argv[2], **MOUNTED)
