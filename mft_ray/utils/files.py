"""The one way to write a file or a folder, whole or not at all, and to read one that may have been cut off."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

_T = TypeVar("_T")
# Time of the last change, in nanoseconds, and bytes.
Signature = tuple[int, int]
_PARTIAL, _OLD = ".partial", ".old"
# Of file systems that cannot be told to write now: some network and user-space ones, most of them for folders.
_NO_FSYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF)


class Damaged(ValueError):
    """A file is there and does not hold what was written into it.

    Attributes:
        path: the file.
        why: what is wrong with it, in a few words.
    """

    def __init__(self, path: str | os.PathLike[str], why: str) -> None:
        super().__init__(path, why)
        self.path, self.why = Path(path), why

    def __str__(self) -> str:
        return f"{self.path} {self.why}"


@contextmanager
def replacing(path: str | os.PathLike[str], ending: str = "") -> Iterator[Path]:
    """Yield a name beside a path; what is written there takes the path's place, once it is safe on the disk.

    A file or a folder that was there is replaced. After an error it is as it was, and nothing else is left.
    What is written can be read by whom the umask allows: some libraries make files for their owner alone.

    Args:
        path: path of the file or folder; the folder that it is in must be there.
        ending: last part of the name beside, for a writer that goes by it.
    """
    path = Path(path)
    # Hidden, and with a name of ours: NAME.partial may be a file of the user's.
    partial, old = (path.with_name(f".{path.name}.mft_ray{role}") for role in (_PARTIAL + ending, _OLD))
    _remove(partial)
    _remove(old)
    try:
        yield partial
        _settle(partial)
        if path.is_dir() and not path.is_symlink():  # a folder cannot be renamed over another
            os.replace(path, old)
        os.replace(partial, path)
    except BaseException:
        if old.exists() and not path.exists():
            os.replace(old, path)
        _remove(partial)
        raise
    _sync_folder(path.parent)
    _remove(old)


def put_in_place(partial: Path, path: Path) -> None:
    """Give a folder that several processes have written its name, once it is safe on the disk.

    Args:
        partial: the folder, complete.
        path: its name, on the same disk; what is there goes.
    """
    _sync_tree(partial)
    _remove(path)
    os.replace(partial, path)
    _sync_folder(path.parent)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file, whole or not at all.

    Args:
        path: path of the file; the folder that it is in must be there.
        content: content of the file.
    """
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_text(path: str | os.PathLike[str], content: str) -> None:
    """Write a text in UTF-8, whole or not at all.

    Args:
        path: path of the file; the folder that it is in must be there.
        content: content of the file.
    """
    write_bytes(path, content.encode())


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write JSON, whole or not at all; NaN becomes null, which any program can read.

    Args:
        path: path of the file; the folder that it is in must be there.
        content: what JSON can hold; numbers may be NaN or infinite.
    """
    write_text(path, json_text(content))


def json_text(content: Any) -> str:
    """Return what `write_json` writes.

    Args:
        content: same as in `write_json`.
    """
    return json.dumps(_without_nan(content), indent=1) + "\n"


def signature(path: str | os.PathLike[str]) -> Signature | None:
    """Return what changes when a file does; None where there is none.

    Args:
        path: path of the file.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size


def read_json(path: str | os.PathLike[str], read: Callable[[Any], _T]) -> _T:
    """Return what is made of a JSON file's content.

    Args:
        path: path of the file.
        read: makes it; any error of a wrong type or a missing key says that the content is not what it should be.

    Raises:
        FileNotFoundError: there is none.
        Damaged: the file is empty, half-written, or holds something else.
    """
    content = Path(path).read_bytes()
    if not content.strip(b"\0 \r\n\t"):  # a machine that went down leaves zeros
        raise Damaged(path, "is empty")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise Damaged(path, "is half-written, or no JSON") from None
    try:
        return read(found)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise Damaged(path, f"does not hold what was written there ({error!r})") from error


def copy_whole(source: Path, to: Path) -> None:
    """Copy a file or a folder, whole or not at all.

    Args:
        source: path of what there is.
        to: path of the copy; the folder that it is in must be there.
    """
    with replacing(to) as partial:
        if source.is_dir():
            shutil.copytree(source, partial)
        else:
            shutil.copy2(source, partial)


def set_aside(path: Path, to: Path) -> None:
    """Move a file or a folder on the same disk, in place of what was moved there before.

    Args:
        path: path of what is damaged.
        to: where it is kept for whoever wants to look at it.
    """
    to.parent.mkdir(parents=True, exist_ok=True)
    _remove(to)
    os.replace(path, to)


def _sync_tree(path: Path) -> None:
    """Have a file, or all files below a folder, on the disk before anything else is done.

    Args:
        path: path of the file or the folder.
    """
    for folder, _, names in os.walk(path):
        for name in names:
            _sync(Path(folder) / name)
        _sync_folder(Path(folder))
    if not path.is_dir():
        _sync(path)


def _sync_folder(path: Path) -> None:
    """Have the names in a folder on the disk: after a rename, that it has happened.

    Args:
        path: path of the folder.
    """
    _sync(path, of_folder=True)


def _settle(path: Path) -> None:
    for file in (path, *path.rglob("*")):
        if file.is_file() and not file.is_symlink() and not (mode := file.stat().st_mode) & 0o077:
            file.chmod(mode & 0o777 | 0o666 & ~_umask())
    _sync_tree(path)


def _sync(path: Path, of_folder: bool = False) -> None:
    try:
        opened = os.open(path, os.O_RDONLY)
    except OSError:
        if of_folder or path.is_symlink():  # a folder that may be written but not read; a link to nowhere
            return
        raise
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise
    finally:
        os.close(opened)


def _umask() -> int:
    try:
        # To ask for it by setting it would be felt by other threads.
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1], 8) for line in lines if line.startswith("Umask:"))
    except (OSError, StopIteration, ValueError):
        mask = os.umask(0o077)
        os.umask(mask)
        return mask


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
