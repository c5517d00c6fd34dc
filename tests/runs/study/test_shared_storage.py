"""The storage of several hosts that tests use: what it is harder in than a disk."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import shared_storage

# What another host does, on demand.
OTHER = "import sys, pathlib\nfor line in sys.stdin:\n    print(repr(eval(line)), flush=True)"


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "behind").mkdir()
    with shared_storage.mounted(tmp_path / "behind") as mount:
        yield mount


class Host:
    """Another process, which is another host here."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", OTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def does(self, expression: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(expression + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        self._process.communicate(timeout=30)


@pytest.fixture
def other() -> Iterator[Host]:
    host = Host()
    yield host
    host.close()


def test_what_others_change_is_seen_late_and_what_one_changes_oneself_at_once(shared: Path, other: Host) -> None:
    file = shared / "file"
    assert not file.exists()
    assert os.listdir(shared) == []
    assert other.does(f"pathlib.Path({str(file)!r}).write_text('theirs')") == "6"
    assert other.does(f"pathlib.Path({str(file)!r}).read_text()") == "'theirs'"
    assert not file.exists()
    assert os.listdir(shared) == []
    time.sleep(shared_storage.BELIEVED_S + 0.2)
    assert file.read_text() == "theirs"
    (shared / "new").write_text("mine")
    (shared / "new").replace(file)
    assert file.read_text() == "mine"
    assert os.listdir(shared) == ["file"]


def test_a_file_that_another_host_replaces_is_lost_to_whoever_has_it_open(shared: Path, other: Host) -> None:
    file = shared / "file"
    file.write_text("old")
    opened = os.open(file, os.O_RDWR)
    mine = os.open(file, os.O_RDONLY)
    new = str(shared / "new")
    other.does(f"pathlib.Path({new!r}).write_text('new')")
    other.does(f"pathlib.Path({new!r}).replace({str(file)!r})")
    with pytest.raises(OSError, match="Stale"):
        os.fsync(opened)
    with pytest.raises(OSError, match="Stale"):
        os.read(mine, 3)
    for each in (opened, mine):
        with pytest.raises(OSError, match="Stale"):
            os.close(each)
    assert file.read_text() == "new"


def test_ones_own_file_stays_until_it_is_closed(shared: Path) -> None:
    file = shared / "file"
    file.write_text("old")
    with file.open() as opened:
        file.unlink()
        assert not file.exists()
        assert [name[:4] for name in os.listdir(shared)] == [".nfs"]
        assert opened.read() == "old"
    deadline = time.monotonic() + 10  # the kernel lets go of it a moment later
    while os.listdir(shared) and time.monotonic() < deadline:
        time.sleep(shared_storage.BELIEVED_S / 2)
    assert os.listdir(shared) == []


def test_syncing_is_slow(shared: Path) -> None:
    with (shared / "file").open("w") as opened:
        opened.write("x")
        opened.flush()
        began = time.monotonic()
        os.fsync(opened.fileno())
        assert time.monotonic() - began >= shared_storage.FSYNC_S
