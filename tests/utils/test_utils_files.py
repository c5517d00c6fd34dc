"""Files that are there whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mft_ray.utils.files import (
    Damaged,
    copy_whole,
    read_json,
    replacing,
    set_aside,
    write_bytes,
    write_json,
    write_text,
)

# Writes a file over and over, each time with as many lines as it has, for as long as it lives.
WRITER = """
import sys
from mft_ray.utils.files import write_json

number = 1
while True:
    write_json(sys.argv[1], [number] * (number % 5000))
    number += 1
"""


@pytest.fixture
def umask() -> Callable[[int], None]:
    before = os.umask(0)
    os.umask(before)
    yield os.umask  # type: ignore[misc]
    os.umask(before)


def write_half(path: Path, folder: bool = False) -> None:
    with replacing(path) as partial:
        if folder:
            partial.mkdir()
        (partial / "half" if folder else partial).write_text("half")
        raise OSError("the disk is full")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def test_nan_is_null_in_json(tmp_path: Path) -> None:
    path = tmp_path / "content.json"
    write_json(path, {"a": math.nan, "b": [1.5, (math.inf, "NaN")], "c": {"d": -math.inf, "e": None}})
    # json.loads would take the NaN that other programs refuse.
    assert "NaN," not in path.read_text()
    assert json.loads(path.read_text()) == {"a": None, "b": [1.5, [None, "NaN"]], "c": {"d": None, "e": None}}


def test_writing_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "content.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    with pytest.raises(OSError, match="full"):
        write_half(path)
    assert json.loads(path.read_text()) == {"a": 1}
    assert names(tmp_path) == ["content.json"]


def test_a_folder_is_replaced_whole_or_stays(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for number in ("one", "two"):
        with replacing(folder) as partial:
            (partial / "inner").mkdir(parents=True)
            (partial / "inner" / number).write_text(number)
        assert names(tmp_path) == ["inner", "model", number]
    with pytest.raises(OSError, match="full"):
        write_half(folder, folder=True)
    assert names(tmp_path) == ["inner", "model", "two"]


def test_what_others_left_under_such_names_is_not_touched(tmp_path: Path) -> None:
    for name in ("a.json.partial", "a.json.old"):
        (tmp_path / name).write_text("mine")
    write_text(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json.partial").read_text() == (tmp_path / "a.json.old").read_text() == "mine"


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_the_umask_says_who_may_read(tmp_path: Path, umask: Callable[[int], None], mask: int, mode: int) -> None:
    umask(mask)
    write_json(tmp_path / "plain.json", [])
    with replacing(tmp_path / "scores.safetensors") as partial:
        save_file({"scores": torch.zeros(3)}, partial)  # which makes files for their owner alone
    with replacing(tmp_path / "model") as partial:
        partial.mkdir()
        save_file({"scores": torch.zeros(3)}, partial / "model.safetensors")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {oct(mode)}


def test_it_is_on_the_disk_before_it_takes_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(number: int) -> None:
        done.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{number}')).name}")
        fsync(number)

    def noted_replace(source: Path, to: Path) -> None:
        done.append(f"rename to {to.name}")
        replace(source, to)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    write_bytes(tmp_path / "a", b"content")
    assert done == ["fsync .a.mft_ray.partial", "rename to a", f"fsync {tmp_path.name}"]
    done.clear()
    with replacing(tmp_path / "folder") as partial:
        partial.mkdir()
        (partial / "b").write_text("content")
    assert done == [
        "fsync b",
        "fsync .folder.mft_ray.partial",
        "rename to folder",
        f"fsync {tmp_path.name}",
    ]


def test_a_disk_that_cannot_take_it_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a", "old")

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "content.json"
    for _ in range(5):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
        deadline = time.monotonic() + 60
        while not path.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.05)
        writer.send_signal(signal.SIGKILL)
        writer.wait(30)
        found = read_json(path, list)
        assert len(found) == (found[0] % 5000 if found else 0)
    write_json(path, [])  # which also takes what a killed one left
    assert names(tmp_path) == ["content.json"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        (b"\0" * 4096, "is empty"),
        (b'{"a": 1, "b', "is half-written"),
        (b"\xff\xfe{", "is half-written"),
        (b"[" * 100_000, "is half-written"),
        (b"[1, 2]", "does not hold what was written there"),
        (b'{"b": 1}', "does not hold what was written there"),
        (b'{"a": "many"}', "does not hold what was written there"),
        (b"null", "does not hold what was written there"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "content.json"
    path.write_bytes(content)
    with pytest.raises(Damaged) as caught:
        read_json(path, lambda found: int(found["a"]))
    assert str(caught.value).startswith(f"{path} {why}")
    assert caught.value.path == path


def test_a_file_that_is_not_there_is_not_damaged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json", dict)


def test_setting_aside_and_copying(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_text("first")
    copy_whole(tmp_path / "a", tmp_path / "copy")
    copy_whole(tmp_path / "a" / "b" / "c", tmp_path / "file")
    set_aside(tmp_path / "a", tmp_path / "damaged" / "a")
    set_aside(tmp_path / "copy", tmp_path / "damaged" / "a")  # in place of the last one
    assert names(tmp_path) == ["a", "b", "c", "damaged", "file"]
