"""Addresses in object stores: what is one, what is refused, and where its copy lies."""

from __future__ import annotations

from pathlib import Path

import pytest

from mft_ray.config import load_config, parse_config
from mft_ray.errors import UserError
from mft_ray.runs.folder import RunFolder, open_folder
from mft_ray.store.address import Address, is_address
from mft_ray.store.places import named, place_of, scratch_of
from mft_ray.store.scratch import SCRATCH, Scratch, Synced, note_above

OPTIONS = "?endpoint_override=http://127.0.0.1:9000&region=eu-west-1"


@pytest.mark.parametrize("text", ["s3://bucket/mine", "gs://bucket/a/b?anonymous=true", f"s3://bucket/a/b{OPTIONS}"])
def test_an_address_is_what_was_given(text: str) -> None:
    address = Address.parse(text)
    assert str(address) == text
    assert Address.parse(str(address)) == address


def test_its_parts_are_told_apart() -> None:
    address = Address.parse(f"s3://bucket/a/b/{OPTIONS}")
    assert (address.place, address.name) == ("bucket/a/b", "b")
    assert dict(address.options) == {"endpoint_override": "http://127.0.0.1:9000", "region": "eu-west-1"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("s3://bucket", "names no folder"),
        ("s3://bucket/", "names no folder"),
        ("s3:///a", "names no folder"),
        ("s3://bucket/a/../b", "names no folder"),
        ("s3://bucket/a//b", "names no folder"),
        ("s3://bucket/a?regio=x", "regio is no option"),
        ("s3://bucket/a?region=x&region=y", "given twice"),
        ("gs://bucket/a?region=x", "region is no option"),
        ("azure://bucket/a", "no object store that is known"),
        ("https://bucket.s3.amazonaws.com/a", "no object store that is known"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_paragraph(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as found:
        Address.parse(text)
    assert text in str(found.value)
    assert "Give " in str(found.value)


@pytest.mark.parametrize(
    "text",
    [
        "s3://hunter2:hunter3@bucket/a",
        "s3://bucket/a?access_key=hunter2",
        "s3://bucket/a?secret_key=hunter2",
        "s3://bucket/a?session_token=hunter2",
    ],
)
def test_a_secret_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UserError, match="AWS_SECRET_ACCESS_KEY") as found:
        Address.parse(text)
    assert "hunter" not in str(found.value)
    with pytest.raises(UserError, match=r"run\.dir") as found:
        parse_config({"model": {"path": "x"}, "run": {"dir": text}})
    assert "hunter" not in str(found.value)


def test_a_path_is_no_address() -> None:
    assert not any(map(is_address, ["runs/mine", "/mnt/s3:/x", "./s3://x", Path("s3://bucket/x"), None]))
    assert is_address("s3://bucket/x")
    assert is_address("file:///x")


def test_the_same_address_has_the_same_place_whatever_its_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SCRATCH, str(tmp_path))
    place = place_of("s3://bucket/a/mine")
    assert place == place_of(f"s3://bucket/a/mine{OPTIONS}")
    assert place.name == "mine"
    assert place.is_relative_to(tmp_path)
    assert len({place, place_of("s3://bucket/b/mine"), place_of("gs://bucket/a/mine")}) == 3


def test_a_relative_place_for_copies_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SCRATCH, "here")
    with pytest.raises(UserError, match="not an absolute path"):
        place_of("s3://bucket/a")


def test_a_copy_goes_by_the_address_of_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SCRATCH, str(tmp_path))
    scratch = Scratch(Address.parse("s3://bucket/a/mine"))
    scratch.run.mkdir(parents=True)
    assert scratch_of(scratch.run) is None  # nothing says yet that it is one
    scratch.save(Synced("first"))
    found = scratch_of(scratch.run)
    assert found is not None
    assert found.address == scratch.address
    assert named(scratch.run) == RunFolder(scratch.run).named == "s3://bucket/a/mine"
    assert note_above(scratch.run / "work" / "groups" / "x") is not None
    assert scratch_of(tmp_path) is None
    assert note_above(tmp_path / "x") is None
    assert named(tmp_path) == str(tmp_path)


def test_a_run_is_worked_on_in_its_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SCRATCH, str(tmp_path))
    config = parse_config({"model": {"path": "x"}, "run": {"dir": "s3://bucket/a/mine"}})
    assert open_folder(config, None).root == place_of("s3://bucket/a/mine")
    assert open_folder(config, "s3://bucket/a/mine").root == place_of("s3://bucket/a/mine")
    config.save(tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml").run.dir == "s3://bucket/a/mine"


def test_what_two_had_in_common_is_found_by_what_the_store_has(tmp_path: Path) -> None:
    scratch = Scratch(Address.parse("s3://bucket/a/mine"), tmp_path)
    assert scratch.synced() == Synced()
    scratch.save(Synced("before"), Synced("now"))
    assert [scratch.synced(name).generation for name in ("before", "now", "another", None)] == [
        "before",
        "now",
        "before",
        "before",
    ]
    (tmp_path / "scratch.json").write_text('{"address": "s3://bucket/a/mine", "states": [{')
    assert scratch.synced() == Synced()
