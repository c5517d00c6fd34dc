"""environment.json: what a run was made with, and what it says when that has changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mft_ray.config import parse_config
from mft_ray.runs import environment as environments
from mft_ray.runs.environment import Environment, changes, keep_environment
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.prepare import make_ready


@pytest.fixture
def folder(ray_cluster: None, tiny: dict[str, Any], tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path)
    make_ready(parse_config(tiny), folder)
    return folder


def sessions(folder: RunFolder) -> list[dict[str, Any]]:
    content: dict[str, Any] = json.loads(folder.environment.read_text())
    assert content["schema"] == 1
    found: list[dict[str, Any]] = content["sessions"]
    return found


def test_it_says_what_a_run_was_made_with(folder: RunFolder) -> None:
    keep_environment(folder)
    [session] = sessions(folder)
    assert session["packages"]["torch"] == torch.__version__
    assert session["packages"].keys() >= {"mft_ray", "ray", "transformers", "deepspeed", "optuna", "numpy"}
    assert session["data"].keys() == {"train", "validation", "test"}
    assert all(len(digest) == 64 for digest in session["data"].values())
    assert session["cluster"]["CPU"] == 2
    assert session["commit"] is None or len(session["commit"].rstrip("+")) == 40


def test_going_on_with_the_same_says_nothing(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    keep_environment(folder)
    before = folder.environment.read_bytes()
    keep_environment(folder)
    assert folder.environment.read_bytes() == before
    assert capsys.readouterr().out == ""


def test_what_has_changed_since_is_said_and_kept(
    folder: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_environment(folder)
    machine = environments.this_machine()
    packages = {**machine.packages, "torch": "9.9", "vllm": "1.0"}
    packages.pop("peft")
    other = {**vars(machine), "packages": packages, "host": "elsewhere"}
    monkeypatch.setattr(environments, "this_machine", lambda: type(machine)(**other))
    keep_environment(folder)
    said = capsys.readouterr().out
    assert f"torch {torch.__version__} → 9.9" in said
    assert "vllm none → 1.0" in said
    assert f"peft {machine.packages['peft']} → none" in said
    assert "elsewhere" not in said
    assert [session["packages"]["torch"] for session in sessions(folder)] == [torch.__version__, "9.9"]


def test_other_data_has_another_hash(folder: RunFolder, tiny: dict[str, Any], tmp_path: Path) -> None:
    keep_environment(folder)
    again, other = RunFolder(tmp_path / "again"), RunFolder(tmp_path / "other")
    make_ready(parse_config(tiny), again)
    keep_environment(again)
    tiny["data"]["seed"] = 1
    make_ready(parse_config(tiny), other)
    keep_environment(other)
    [first], [same], [changed] = sessions(folder), sessions(again), sessions(other)
    assert first["data"] == same["data"]
    assert all(first["data"][split] != changed["data"][split] for split in first["data"])


def test_a_damaged_file_is_begun_anew(folder: RunFolder) -> None:
    folder.environment.write_text("{")
    keep_environment(folder)
    assert len(sessions(folder)) == 1


def test_what_differs_is_named_once() -> None:
    one = Environment(began="1", host="a", system="Linux 6", python="3.11.7", packages={"ray": "2.60.0"})
    two = one.model_copy(update={"began": "2", "host": "b", "python": "3.12.1", "cards": ["H100"], "commit": "c0ffee"})
    assert changes(one, one.model_copy(update={"cluster": {"CPU": 4.0}})) == []
    assert changes(one, two) == ["GPUs none → H100", "commit none → c0ffee", "python 3.11.7 → 3.12.1"]
