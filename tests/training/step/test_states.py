"""Hidden states on a node: bit for bit, for all of its workers, within a budget, and gone with them."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from mft_ray.training.step.states import Key, Rows, StateCache, States

LENGTHS = [3, 1, 2]
CPU = torch.device("cpu")
FLOATS = torch.float32


def key(layer: int = 1, source: str = "m") -> Key:
    return Key((source,), "float32", "tokens", layer)


def rows(*indices: int, length: int = 4, packed: bool = False) -> Rows:
    return Rows("tokens", LENGTHS, list(indices), length, CPU, packed)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "states"


def cache(folder: Path, budget: float = 1e9) -> StateCache:
    kept = StateCache(folder)
    kept.budget = budget
    return kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_states_come_back_bit_for_bit(dtype: torch.dtype) -> None:
    states = States.new(key(), LENGTHS, 5, dtype)
    given = {index: torch.randn(length, 5).to(dtype) for index, length in ((0, 3), (2, 2))}
    for index, each in given.items():
        states.put(index, each)
    assert [states.has([index]) for index in range(3)] == [True, False, True]
    found = states.get(rows(2, 0))
    assert torch.equal(found[0, :2], given[2])
    assert torch.equal(found[1, :3], given[0])
    assert not found[0, 2:].any()
    packed = states.get(rows(2, 0, length=5, packed=True))
    assert torch.equal(packed, torch.cat([given[2], given[0]])[None])


def test_the_budget_holds_and_the_oldest_go_first(folder: Path) -> None:
    kept = cache(folder, 2.5 * States.size([10], 4, FLOATS))
    opened = [kept.open(key(layer), [10], 4, FLOATS) for layer in (1, 2)]
    assert kept.open(key(1), [10], 4, FLOATS) is opened[0]  # used again: the other is older now
    assert kept.open(key(3), [10], 4, FLOATS) is not None
    assert kept.open(key(1), [10], 4, FLOATS) is opened[0]
    assert kept.open(key(2), [10], 4, FLOATS) is not opened[1]
    assert kept.open(key(4), [1000], 400, FLOATS) is None  # more than there may be


def test_the_file_has_no_name(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    states = States.new(key(), LENGTHS, 2, FLOATS)
    states.put(0, torch.ones(3, 2))
    assert list(tmp_path.iterdir()) == []


def test_the_next_worker_finds_what_one_has_kept(folder: Path) -> None:
    with another(keeps, folder):
        mine = cache(folder)
        states = mine.open(key(), LENGTHS, 5, FLOATS)
        assert states is not None
        assert states.has([0])
        assert torch.equal(states.get(rows(0))[0, :3], torch.full((3, 5), 7.0))
        states.put(1, torch.ones(1, 5))
    # The other one is gone, killed; what was opened stays.
    assert states.has([0, 1])
    assert torch.equal(states.get(rows(0))[0, :3], torch.full((3, 5), 7.0))
    # For whoever comes now nothing is there, and a new file takes the place.
    with another(sees_nothing, folder):
        pass


def test_what_lies_deeper_or_is_of_another_source_is_not_taken(folder: Path) -> None:
    with another(keeps, folder):
        mine = cache(folder)
        mine.look(key(layer=0), LENGTHS)
        mine.look(key(source="n"), LENGTHS)
        mine.look(key(), [3, 1, 3])  # not the same examples
        assert mine.below(key(layer=9), [0]) is None
        mine.look(key(layer=3), LENGTHS)
        found = mine.below(key(layer=3), [0])
        assert found is not None
        assert found[0] == 1
        assert mine.below(key(layer=3), [0, 1]) is None


def test_the_budget_is_the_nodes(folder: Path) -> None:
    size = States.size(LENGTHS, 5, FLOATS)
    with another(keeps, folder):
        mine = cache(folder, 1.5 * size)
        assert mine.open(key(2), LENGTHS, 5, FLOATS) is None
        assert mine.open(key(1), LENGTHS, 5, FLOATS) is not None  # shared: it takes no more
    assert cache(folder, 1.5 * size).open(key(2), LENGTHS, 5, FLOATS) is not None


def test_a_link_to_something_else_is_replaced(folder: Path, tmp_path: Path) -> None:
    """A process may have the number of one that is gone, and some other file open."""
    mine = cache(folder)
    other = tmp_path / "other"
    other.write_bytes(b"{" * 100_000)
    folder.mkdir(mode=0o700)
    (folder / f"{key().source}-1").symlink_to(other)
    states = mine.open(key(), LENGTHS, 5, FLOATS)
    assert states is not None
    assert not states.has([0])
    assert other.read_bytes() == b"{" * 100_000
    assert os.readlink(folder / f"{key().source}-1") == states.link


def test_a_folder_that_others_may_write_to_is_not_used(folder: Path) -> None:
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    mine = cache(folder)
    assert mine.open(key(), LENGTHS, 5, FLOATS) is not None  # for this worker alone
    assert list(folder.iterdir()) == []


def keeps(folder: Path) -> Any:
    mine = cache(folder)
    states = mine.open(key(), LENGTHS, 5, FLOATS)
    assert states is not None
    states.put(0, torch.full((3, 5), 7.0))
    return mine


def sees_nothing(folder: Path) -> Any:
    mine = cache(folder)
    mine.look(key(), LENGTHS)
    assert mine.below(key(), [0]) is None
    states = mine.open(key(), LENGTHS, 5, FLOATS)
    assert states is not None
    assert not states.has([0])


@contextmanager
def another(does: Callable[[Path], Any], folder: Path) -> Iterator[None]:
    """Another process that does something, stays, and is killed."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_at_work, args=(does, folder, there))
    process.start()
    assert here.poll(60), "the other process is silent"
    assert here.recv() is None
    try:
        yield
    finally:
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()


def _at_work(does: Callable[[Path], Any], folder: Path, tell: Connection) -> None:
    try:
        kept = does(folder)
    except BaseException as error:
        tell.send(repr(error))
        raise
    tell.send(None)
    signal.pause()
    del kept
