"""Ray's logs are kept of a run in which something failed, by whatever clock the failure was written down."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mft_ray.runs.folder import RunFolder
from mft_ray.runs.ray_logs import kept_logs


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path)
    folder.work.mkdir()
    return folder


def fail(folder: RunFolder, trial: str) -> None:
    """Note a failure as a host or a file server does whose clock is ten minutes behind."""
    error = folder.trial(trial) / "error.json"
    error.parent.mkdir(parents=True, exist_ok=True)
    error.write_text("{}")
    os.utime(error, (error.stat().st_atime - 600, error.stat().st_mtime - 600))


@pytest.mark.parametrize(("fails", "kept"), [(True, 1), (False, 0)])
def test_a_failure_counts_whose_clock_is_behind_but_none_of_an_earlier_start(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, fails: bool, kept: int
) -> None:
    fail(folder, "earlier")
    seen: list[bool] = []
    monkeypatch.setattr("mft_ray.runs.ray_logs._keep", lambda folder, private: seen.append(private))
    with kept_logs(folder):
        if fails:
            fail(folder, "now")
    assert len(seen) == kept
