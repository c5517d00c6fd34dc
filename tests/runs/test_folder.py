"""Where a run lies, and that nobody else writes there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mft_ray.config import Config, parse_config
from mft_ray.errors import UserError
from mft_ray.runs.folder import RunFolder, check_place, lock, open_folder


def _config(tiny, folder: Path | str | None):
    return parse_config({**tiny, "run": {"name": "mine", "dir": None if folder is None else str(folder)}})


def test_a_new_or_empty_folder_is_taken_and_nothing_is_written_yet(tiny, tmp_path):
    new = tmp_path / "deep" / "run"
    assert open_folder(_config(tiny, new), None).root == new
    assert list(tmp_path.iterdir()) == []
    empty = tmp_path / "empty"
    empty.mkdir()
    assert open_folder(_config(tiny, empty), None).root == empty


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(tiny, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"not empty.*--resume.*--set run\.dir=") as caught:
        open_folder(_config(tiny, tmp_path), None)
    assert str(tmp_path) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_place_of_the_folder_is_refused(tiny, tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UserError, match="run"):
        open_folder(_config(tiny, tmp_path / "run"), None)


def test_without_a_folder_the_run_is_named_and_dated(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = open_folder(_config(tiny, None), None).root
    assert root.parent == tmp_path / "runs"
    assert root.name.startswith("mine-20")


def test_relative_folders_lie_where_the_user_is(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_folder(_config(tiny, "here/run"), None).root == tmp_path / "here" / "run"


def test_a_job_does_not_keep_its_run_in_rays_temporary_copy(tiny, tmp_path, monkeypatch):
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "pkg"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in (None, "here/run"):
        root = open_folder(_config(tiny, folder), None).root
        assert root.is_relative_to(tmp_path / "mft_ray")


def test_resume_takes_a_folder_that_is_not_empty(tiny, tmp_path):
    (tmp_path / "config.yaml").write_text("")
    assert open_folder(_config(tiny, None), str(tmp_path)).root == tmp_path


def test_another_process_is_refused_while_the_lock_is_held_and_not_after(tmp_path):
    folder = RunFolder(tmp_path / "run")
    other = (
        "import sys; from pathlib import Path; from mft_ray.runs.folder import RunFolder, lock; "
        "lock(RunFolder(Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", other, str(folder.root)]
    held = lock(folder)
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert f"UserError: Another process is working on {folder.root}" in refused.stderr
    held.release()
    # A lock that its process did not release, because it was killed, holds nobody up either.
    subprocess.run(command, check=True)
    lock(folder).release()


@pytest.mark.parametrize("place", ["/proc/a-run", "/sys/kernel/a-run", "/dev/null/a-run"])
def test_a_place_where_nothing_can_be_made_is_found_at_once(place: str, tiny_config: Config) -> None:
    """Also by root, whom permissions do not bind."""
    config = tiny_config.model_copy(update={"run": tiny_config.run.model_copy(update={"dir": place})})
    with pytest.raises(UserError, match=r"run\.dir is .*, and "):
        open_folder(config, None)
    with pytest.raises(UserError, match="The folder of the run is"):
        open_folder(config, place)


def test_looking_whether_a_place_can_be_written_leaves_nothing(tmp_path: Path) -> None:
    check_place(tmp_path / "a" / "run", "run.dir")
    assert list(tmp_path.iterdir()) == []
