"""What is taken for an id on the hub, and what for something here. Talk with a hub: `test_hub_round_trip`."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from mft_ray.errors import UserError
from mft_ray.models.hub import is_hub_id, local_artifact, origin_of, split_revision


@pytest.mark.parametrize(
    ("given", "is_one"),
    [
        ("me/mask", True),
        ("me/mask@v1", True),
        ("gpt2", True),
        ("runs/mask", False),  # there is a folder runs
        ("runs/mine/best", False),
        ("/absent/mask", False),
        ("./me/mask", False),
        ("~/mask", False),
        ("me/mask.safetensors", False),  # there is such a file
        ("me/--mask", False),
        ("", False),
        ("@v1", False),
    ],
)
def test_what_is_here_comes_first(given: str, is_one: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    if given == "me/mask.safetensors":
        Path("me").mkdir()
        Path(given).touch()
    assert is_hub_id(given) == is_one
    assert not is_hub_id("gpt2", owned=True)


def test_a_revision_is_behind_an_at_sign_but_not_in_a_path(tmp_path: Path) -> None:
    assert split_revision("me/mask") == ("me/mask", None)
    assert split_revision("me/mask@refs/pr/1") == ("me/mask", "refs/pr/1")
    here = tmp_path / "run@night"
    assert split_revision(str(here)) == (str(here), None)


@pytest.mark.parametrize("given", ["mask.safetensors", "me/mask.safetensors", "/absent/adapter", "adapter"])
def test_a_path_stays_what_it_is(given: str) -> None:
    assert local_artifact(given) == given


def test_the_commit_is_that_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--lab--base" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = tmp_path / "models--lab--base" / "refs"
    refs.mkdir()
    (refs / "main").write_text(commit)
    assert origin_of("lab/base") == origin_of(f"lab/base@{commit}") == f"lab/base@{commit}"
    assert origin_of("lab/other") == origin_of(str(snapshot)) == ""


def test_without_a_network_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"me/mask, which is nothing on this machine.*HF_HUB_OFFLINE is set"):
        local_artifact("me/mask")
