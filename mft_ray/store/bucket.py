"""What an object store is asked: objects written, read, listed and deleted, each tried again where that may help."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

from mft_ray.errors import RunFailed
from mft_ray.store.address import Address

_T = TypeVar("_T")
_CHUNK = 8 * 2**20
_PAUSES_S = (0.5, 1.0, 2.0, 5.0, 10.0)  # the last for ever

# What another try does not change, by what pyarrow says of it, and what to do.
_FINAL = (
    (
        r"NO_SUCH_BUCKET|bucket does not exist|NOT_FOUND.*(CreateResumableUpload|InsertObject)",
        "there is no such bucket. Make it, or give another",
    ),
    (
        r"INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|INVALID_CLIENT_TOKEN_ID|UNRECOGNIZED_CLIENT|"
        r"MISSING_AUTHENTICATION_TOKEN|INVALID_SIGNATURE|INVALID_TOKEN|InvalidToken|UNAUTHENTICATED",
        "the store does not know these credentials. Give others: for s3 in AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or a profile (AWS_PROFILE); for gs in the file that GOOGLE_APPLICATION_CREDENTIALS "
        "names",
    ),
    (
        r"ACCESS_DENIED|HTTP status 403|AccessDenied|PERMISSION_DENIED|Permission denied|Forbidden",
        "the store refuses it to these credentials, or there are none. They must be allowed to list, read, write and "
        "delete objects there",
    ),
    (
        r"HTTP status 301|PermanentRedirect|AuthorizationHeaderMalformed|HTTP status 307",
        "the bucket is in another region. Give that: AWS_REGION=…, or ?region=… at the end of the address",
    ),
)
_HOST = (r"resolve host", "its host has no address. Is the endpoint right (AWS_ENDPOINT_URL, or ?endpoint_override=…)")


class StoreFailed(RunFailed):
    """An object store does not do what it is asked, and another try will not help, or has not.

    Attributes:
        final: whether another try would be in vain.
    """

    final = False


@dataclass
class Traffic:
    """What has been carried.

    Attributes:
        written: bytes written.
        read: bytes read.
        requests: number of requests by kind, as they were meant; each may be several.
    """

    written: int = 0
    read: int = 0
    requests: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """An object that is there.

    Attributes:
        size: bytes.
        changed: when it was written, in seconds since 1970 by the store's clock.
    """

    size: int
    changed: float


class Bucket:
    """The objects of one run; threads may share it.

    Args:
        address: where they are.
        patience_s: seconds that a request is tried again where the store does not answer, or says that it cannot.
        say: told when that begins, and when it is over.
    """

    def __init__(self, address: Address, patience_s: float, say: Callable[[str], object]) -> None:
        self.address, self.patience_s, self._say = address, patience_s, say
        self.traffic = Traffic()
        self._lock = threading.Lock()
        self._waiting = 0
        self._over = threading.Event()
        self._known: Any = None

    def give_up(self) -> None:
        """Have requests that are tried again fail at once."""
        self._over.set()

    def read(self, name: str) -> bytes | None:
        """Return what an object holds; None where there is none.

        Args:
            name: name of the object within the run.

        Raises:
            StoreFailed: it cannot be read.
        """

        def work() -> bytes | None:
            try:
                with self._files.open_input_stream(self._key(name)) as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

        content = self._tried("read", name, work)
        self._count(read=len(content or b""))
        return content

    def write(self, name: str, content: bytes) -> None:
        """Write an object, whole or not at all.

        Args:
            name: name of the object.
            content: what it is to hold.

        Raises:
            StoreFailed: it cannot be written.
        """

        def work() -> None:
            with self._files.open_output_stream(self._key(name)) as stream:
                stream.write(content)

        self._tried("write", name, work)
        self._count(written=len(content))

    def upload(self, name: str, path: Path, size: int) -> None:
        """Write what a file begins with as an object, whole or not at all.

        Args:
            name: name of the object.
            path: path of the file.
            size: number of bytes.

        Raises:
            StoreFailed: it cannot be written.
        """

        def work() -> None:
            with path.open("rb") as file, self._files.open_output_stream(self._key(name)) as stream:
                left = size
                while left and (chunk := file.read(min(_CHUNK, left))):
                    stream.write(chunk)
                    left -= len(chunk)

        self._tried("write", name, work)
        self._count(written=size)

    def download(self, name: str, path: Path) -> str | None:
        """Read an object into a file.

        Args:
            name: name of the object.
            path: path of the file, which is written in place.

        Returns:
            Digest of what was read, see `digest_of`; None where there is no such object.

        Raises:
            StoreFailed: it cannot be read.
        """

        def work() -> tuple[str, int] | None:
            made, size = blake2b(digest_size=16), 0
            try:
                with self._files.open_input_stream(self._key(name)) as stream, path.open("wb") as file:
                    while chunk := stream.read(_CHUNK):
                        made.update(chunk)
                        file.write(chunk)
                        size += len(chunk)
            except FileNotFoundError:
                return None
            return made.hexdigest(), size

        done = self._tried("read", name, work)
        self._count(read=done[1] if done else 0)
        return done[0] if done else None

    def listed(self, folder: str = "") -> dict[str, Found]:
        """Return what objects there are, by name.

        Args:
            folder: first part of their names, or nothing.

        Raises:
            StoreFailed: they cannot be listed.
        """
        from pyarrow import fs

        def work() -> list[Any]:
            selected = fs.FileSelector(self._key(folder), allow_not_found=True, recursive=True)
            return list(self._files.get_file_info(selected))

        found = self._tried("list", folder or "it", work)
        start = len(self.address.place) + 1
        return {
            each.path[start:]: Found(each.size, each.mtime_ns / 1e9 if each.mtime_ns else 0.0)
            for each in found
            if each.type == fs.FileType.File
        }

    def found(self, name: str) -> Found | None:
        """Return an object's size and time; None where there is none.

        Args:
            name: name of the object.

        Raises:
            StoreFailed: the store cannot be asked.
        """
        from pyarrow import fs

        [info] = self._tried("look at", name, lambda: self._files.get_file_info([self._key(name)]))
        return Found(info.size, info.mtime_ns / 1e9) if info.type == fs.FileType.File else None

    def remove(self, names: Iterable[str]) -> None:
        """Delete objects; some may be gone already.

        Args:
            names: names of the objects.

        Raises:
            StoreFailed: one cannot be deleted.
        """
        for name in names:

            def work(name: str = name) -> None:
                try:
                    self._files.delete_file(self._key(name))
                except FileNotFoundError:
                    return

            self._tried("delete", name, work)

    @property
    def _files(self) -> Any:
        if self._known is None:
            self._known = self.address.filesystem()
        return self._known

    def _key(self, name: str) -> str:
        return f"{self.address.place}/{name}" if name else self.address.place

    def _count(self, written: int = 0, read: int = 0) -> None:
        with self._lock:
            self.traffic.written += written
            self.traffic.read += read

    def _tried(self, doing: str, name: str, work: Callable[[], _T]) -> _T:
        """Do some work, again where it fails and may not the next time."""
        with self._lock:
            self.traffic.requests[doing] = self.traffic.requests.get(doing, 0) + 1
        began, tries, told = time.monotonic(), 0, False
        while True:
            try:
                done = work()
            except OSError as error:
                failed = self._failed(doing, name, error)
                left = self.patience_s - (time.monotonic() - began)
                if failed.final or left <= 0 or self._over.is_set():
                    raise failed from error
                if tries == 1 and not told:  # one alone is nothing that a person need know of
                    told = self._tell(f"{failed}; it is tried again, for {left / 60:.3g} min")
                self._over.wait(min(_PAUSES_S[min(tries, len(_PAUSES_S) - 1)], left))
                tries += 1
            else:
                if told:
                    self._told_over()
                return done

    def _tell(self, text: str) -> bool:
        """Say something once for all requests that wait."""
        with self._lock:
            self._waiting += 1
            first = self._waiting == 1
        if first:
            self._say(text)
        return True

    def _told_over(self) -> None:
        with self._lock:
            first, self._waiting = self._waiting > 0, 0
        if first:
            self._say(f"{self.address} answers again")

    def _failed(self, doing: str, name: str, error: OSError) -> StoreFailed:
        if isinstance(error.errno, int) and error.filename:  # of this machine's disk
            raise error
        said = " ".join(str(error).split())
        if "HeadObject" in said and "ACCESS_DENIED" in said:
            said = self._reason() or said
        what = f"{self.address}: to {doing} {name} has failed"
        for pattern, advice in _FINAL:
            if re.search(pattern, said):
                failed = StoreFailed(f"{what}: {advice} (the store said: {_short(said)})")
                failed.final = True
                return failed
        hint = f" — {_HOST[1]}?" if re.search(_HOST[0], said) else ""
        return StoreFailed(f"{what}: {_short(said)}{hint}")

    def _reason(self) -> str | None:
        """Return why the store refuses something: to who asks about an object it may not say, of a list it does."""
        from pyarrow import fs

        try:
            self._files.get_file_info(fs.FileSelector(self._key(""), allow_not_found=True))
        except OSError as error:
            return " ".join(str(error).split())
        return None


def digest_of(path: Path, size: int) -> str:
    """Return what tells the first bytes of a file from any others.

    Args:
        path: path of the file.
        size: number of bytes.
    """
    made, left = blake2b(digest_size=16), size
    with path.open("rb") as file:
        while left and (chunk := file.read(min(_CHUNK, left))):
            made.update(chunk)
            left -= len(chunk)
    return made.hexdigest()


def _short(said: str) -> str:
    return re.sub(r"\s*\(Request ID: [^)]*\)", "", said)[:300]
