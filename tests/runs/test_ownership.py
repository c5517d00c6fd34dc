"""A run of somebody else's is not unpickled without a word."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mft_ray.errors import UserError
from mft_ray.runs import folder as module
from mft_ray.runs.folder import RunFolder, check_owner
from mft_ray.runs.session import session

STRANGER = 54321


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    (folder.tune / "search").mkdir(parents=True)
    (folder.tune / "search" / "tuner.pkl").write_bytes(b"x")
    return folder


@pytest.fixture
def another(monkeypatch: pytest.MonkeyPatch, folder: RunFolder) -> Path:
    """A file that belongs to another user than the one who goes on with the run."""
    file = folder.tune / "search" / "tuner.pkl"
    if os.getuid() == 0:
        os.chown(file, STRANGER, STRANGER)
    else:
        monkeypatch.setattr(module.os, "getuid", lambda: STRANGER)
    return file


def test_ones_own_files_are_trusted(folder: RunFolder) -> None:
    check_owner(folder.tune)


def test_anothers_are_named_and_refused(
    folder: RunFolder, another: Path, monkeypatch: pytest.MonkeyPatch, tiny: dict[str, object]
) -> None:
    with pytest.raises(UserError, match=r"belongs to user \d+, and you are user \d+") as caught:
        check_owner(folder.tune)
    assert "MFT_RAY_TRUST_RUN=1" in str(caught.value)
    monkeypatch.setenv("MFT_RAY_TRUST_RUN", "1")
    check_owner(folder.tune)


def test_a_run_is_checked_before_anything_of_it_is_read(
    folder: RunFolder, another: Path, tiny_config: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mft_ray.runs.session.connected", None)
    tiny_config.save(folder.config)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="belongs to user"), session(None, str(folder.root)):
        pass
