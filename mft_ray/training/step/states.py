"""Hidden states of examples, kept on a node for all of its workers, in files that go with the processes that use them.

A file has no name, so that nothing is left behind however a process ends. Others find it by a link to the open file of
whoever made it; who has opened it keeps it, whatever becomes of its maker.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_HEAD = 4096  # bytes of a file before the marks of what is there
_PRESENT = b"\1"
_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}


@dataclass(frozen=True)
class Rows:
    """Examples of one forward, a row each, padded behind, or packed into one.

    Attributes:
        split: what the split holds.
        lengths: tokens of each of the split's examples.
        indices: examples of the split, in the batch's order.
        length: tokens of a row of the batch, padding included.
        device: device of the batch.
        packed: whether all examples lie one behind the other in one row.
    """

    split: str
    lengths: Sequence[int]
    indices: Sequence[int]
    length: int
    device: torch.device
    packed: bool = False

    def places(self) -> list[tuple[int, int, slice]]:
        """Return each example, its row in the batch, and its tokens there."""
        if not self.packed:
            return [(index, row, slice(0, self.lengths[index])) for row, index in enumerate(self.indices)]
        ends = itertools.accumulate(self.lengths[index] for index in self.indices)
        return [
            (index, 0, slice(end - self.lengths[index], end)) for index, end in zip(self.indices, ends, strict=True)
        ]


@dataclass(frozen=True)
class Key:
    """What hidden states follow from.

    Attributes:
        backbone: what the frozen layers are: model, dtype, fingerprint.
        compute: dtype of the computation.
        split: what the split holds.
        layer: number of the layer that the states are the input of.
    """

    backbone: tuple[Any, ...]
    compute: str
    split: str
    layer: int

    @cached_property
    def source(self) -> str:
        """All but the layer, in one word."""
        return hashlib.sha256(repr((self.backbone, self.compute, self.split)).encode()).hexdigest()[:32]


class States:
    """Hidden states of a split's examples before one layer, in an open file.

    Args:
        file: open file, which is this object's from then on.
        lengths: tokens of each example.
        width: numbers in a token's state.
        dtype: dtype of the states.

    Attributes:
        bytes: bytes of the disk that it holds.
    """

    def __init__(self, file: int, lengths: Sequence[int], width: int, dtype: torch.dtype) -> None:
        self._file = file
        self._starts = [0, *itertools.accumulate(lengths)]
        self._width, self._dtype = width, dtype
        self._data = _data_at(len(lengths))
        self.bytes = self.size(lengths, width, dtype)

    def close(self) -> None:
        """Close the file; if nobody else has it open, it is gone."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    __del__ = close

    @classmethod
    def new(cls, key: Key, lengths: Sequence[int], width: int, dtype: torch.dtype) -> States:
        """Make a file with room for all states.

        Raises:
            OSError: the disk has no room for them.
        """
        # Read and written rather than mapped: pages of a map would count as this process's memory.
        with tempfile.TemporaryFile(prefix="mft-states-", buffering=0) as unnamed:
            file = os.dup(unnamed.fileno())
        states = cls(file, lengths, width, dtype)
        os.posix_fallocate(file, 0, states.bytes)
        os.pwrite(file, _head(key, len(lengths), width, dtype), 0)
        return states

    @classmethod
    def found(cls, link: Path, key: Key, lengths: Sequence[int]) -> States | None:
        """Open a file that another process has made; None where the link leads to none, or to another's."""
        try:
            file = os.open(link, os.O_RDWR)
        except OSError:
            return None
        with suppress(OSError, ValueError, KeyError, TypeError):
            head = os.pread(file, _HEAD, 0)
            said = json.loads(head.rstrip(b"\0"))
            width, dtype = int(said["width"]), _DTYPES[said["dtype"]]
            size = os.fstat(file).st_size
            if head == _head(key, len(lengths), width, dtype) and size == cls.size(lengths, width, dtype):
                return cls(file, lengths, width, dtype)
        os.close(file)
        return None

    @staticmethod
    def size(lengths: Sequence[int], width: int, dtype: torch.dtype) -> int:
        """Return the bytes that the states of all examples take."""
        return _data_at(len(lengths)) + sum(lengths) * width * dtype.itemsize

    @property
    def inode(self) -> int:
        """What tells the file from others."""
        return os.fstat(self._file).st_ino

    @property
    def link(self) -> str:
        """Where other processes find the file, while this one has it open."""
        return f"/proc/{os.getpid()}/fd/{self._file}"

    def has(self, indices: Sequence[int]) -> bool:
        """Say whether the states of all these examples are there, whoever put them there."""
        # Not all marks: a split may have a million.
        return all(os.pread(self._file, 1, _HEAD + index) == _PRESENT for index in indices)

    def put(self, index: int, states: Tensor) -> None:
        """Keep an example's states, shape (tokens, width)."""
        plain = states.detach().to("cpu", self._dtype).contiguous()
        content = plain.view(torch.uint8).numpy().data.cast("B")
        at = self._at(index)
        while content:
            written = os.pwrite(self._file, content, at)
            content, at = content[written:], at + written
        os.pwrite(self._file, _PRESENT, _HEAD + index)  # last: who sees it finds the rest

    def get(self, rows: Rows) -> Tensor:
        """Return examples' states as they lie in a forward, zeros between them, shape (rows, length, width)."""
        found = torch.zeros(1 if rows.packed else len(rows.indices), rows.length, self._width, dtype=self._dtype)
        for index, row, tokens in rows.places():
            into = found[row, tokens].view(torch.uint8).numpy().data.cast("B")
            at = self._at(index)
            while into:
                read = os.preadv(self._file, [into], at)
                into, at = into[read:], at + read
        return found.to(rows.device, non_blocking=True)

    def _at(self, index: int) -> int:
        return self._data + self._starts[index] * self._width * self._dtype.itemsize


class StateCache:
    """The states that a worker uses, its own and those of other workers of its node.

    Args:
        folder: where workers of a node leave links to what they have; None: a folder of this user's.

    Attributes:
        budget: bytes that all states of the node may take. A worker lets the least recently used of its own go.
        mine: what no other worker has in its keys.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.budget, self.mine = 0.0, uuid.uuid4().hex
        self._folder = folder or Path(tempfile.gettempdir()) / f"mft-states-{os.getuid()}"
        self._kept: dict[Key, States] = {}

    def open(self, key: Key, lengths: Sequence[int], width: int, dtype: torch.dtype) -> States | None:
        """Return the states under a key, new ones if there are none; None where the budget is too small for them."""
        states = self._kept.pop(key, None)
        if states is None:
            with self._alone() as shared:
                states = States.found(self._link(key), key, lengths) if shared else None
                states = states or self._made(key, lengths, width, dtype, shared)
        if states is not None:
            self._kept[key] = states
        return states

    def look(self, key: Key, lengths: Sequence[int]) -> None:
        """Open what other workers have of a source, up to a key's layer."""
        with self._alone() as shared:
            for link in self._folder.glob(f"{key.source}-*") if shared else ():
                other = Key(key.backbone, key.compute, key.split, int(link.name.rpartition("-")[2]))
                if other.layer <= key.layer and other not in self._kept:
                    states = States.found(link, other, lengths)
                    if states is not None:
                        self._kept[other] = states

    def below(self, key: Key, indices: Sequence[int]) -> tuple[int, States] | None:
        """Return the deepest states at or below a key's layer that have all these examples, and their layer."""
        found = [
            (each.layer, states)
            for each, states in self._kept.items()
            if each.source == key.source and each.layer <= key.layer and states.has(indices)
        ]
        return max(found, key=lambda pair: pair[0], default=None)

    def _made(self, key: Key, lengths: Sequence[int], width: int, dtype: torch.dtype, shared: bool) -> States | None:
        needed = States.size(lengths, width, dtype)
        if needed > self.budget:
            return None
        while self._used(shared) + needed > self.budget:
            if not self._kept:
                return None  # what is used is others'
            self._kept.pop(next(iter(self._kept))).close()
        try:
            states = States.new(key, lengths, width, dtype)
        except OSError:
            return None
        if shared:
            link = self._link(key)
            link.unlink(missing_ok=True)
            link.symlink_to(states.link)
        return states

    def _used(self, shared: bool) -> int:
        """Return the bytes of all states of the node that there are links to; dead links go."""
        files = {states.inode: states.bytes for states in self._kept.values()}
        for link in self._folder.glob("*-*") if shared else ():
            try:
                status = link.stat()
            except OSError:
                status = None
            if status is None or status.st_nlink:  # gone, or a file with a name: its number is another's now
                link.unlink(missing_ok=True)
            else:
                files[status.st_ino] = status.st_size
        return sum(files.values())

    def _link(self, key: Key) -> Path:
        return self._folder / f"{key.source}-{key.layer}"

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Keep other workers out of the folder meanwhile; yields False where there is none of this user's alone."""
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            status = self._folder.lstat()
            if status.st_uid != os.getuid() or status.st_mode & 0o077:
                raise PermissionError(self._folder)
            lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError:
            yield False
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield True
        finally:
            os.close(lock)


def _data_at(count: int) -> int:
    """Return where the states of a split of so many examples begin, behind the head and a mark for each."""
    return _HEAD + -(-count // _HEAD) * _HEAD


def _head(key: Key, count: int, width: int, dtype: torch.dtype) -> bytes:
    """Return how a file begins, by which it is known: a number of a process may have come to be another's."""
    said = {"source": key.source, "layer": key.layer, "examples": count, "width": width, "dtype": str(dtype)}
    return json.dumps(said).encode().ljust(_HEAD, b"\0")
