"""A run that is held in an object store while it is worked on, and fetched by others."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from uuid import uuid4

import object_store
import pytest

from mft_ray.config import Config, parse_config
from mft_ray.errors import RunFailed, UserError
from mft_ray.runs.fft_model import FftModel
from mft_ray.runs.folder import RunFolder, lock, open_folder
from mft_ray.runs.live.steering import ask_to_try, stop
from mft_ray.runs.stored import fetched, followed, held_in_store
from mft_ray.store import keeper
from mft_ray.store import lease as leases
from mft_ray.store.bucket import Bucket
from mft_ray.store.lease import Holder
from mft_ray.store.manifest import LEASE, OBJECTS, Manifest
from mft_ray.store.places import place_of, scratch_of
from mft_ray.store.scratch import SCRATCH, Scratch, note_above
from mft_ray.workers.worker_loop import check_seen


@pytest.fixture(scope="module")
def server() -> Iterator[object_store.Server]:
    with object_store.server() as its:
        yield its


@pytest.fixture
def uri(server: object_store.Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The address of a run that is not there yet, on a machine of this test's own."""
    for name, value in {**server.environment, SCRATCH: str(tmp_path / "scratch")}.items():
        monkeypatch.setenv(name, value)
    return f"s3://{object_store.BUCKET}/runs/{uuid4().hex}"


def config(uri: str, **run: object) -> Config:
    return parse_config({"model": {"path": "x"}, "run": {"dir": uri, "push_seconds": 0.2, **run}})


def bucket(uri: str) -> Bucket:
    scratch = scratch_of(uri)
    assert scratch is not None
    return Bucket(scratch.address, 10, print)


def files(uri: str) -> set[str]:
    manifest = Manifest.load(bucket(uri))
    return set(manifest.files) - {"work/store.json"} if manifest else set()


def begin(given: Config) -> RunFolder:
    folder = open_folder(given, None)
    folder.work.mkdir(parents=True)
    given.save(folder.config)
    return folder


def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(SCRATCH, str(tmp_path / "elsewhere"))


def test_a_store_follows_what_is_done(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    with held_in_store(config(uri, push_seconds=2), None):
        folder = begin(config(uri))
        assert folder.named == uri  # and all nodes are asked for it, before anything is in the store
        assert note_above(folder.work / "groups" / "fft") is not None
        assert files(uri) == set()
        out = folder.trial("abc")
        out.mkdir(parents=True)
        (out / "outcome.json").write_text('{"x": 1}')
        deadline = time.monotonic() + 30
        while "work/trials/abc/outcome.json" not in files(uri):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        (folder.root / "verdict.json").write_text("{}")
    assert files(uri) == {"config.yaml", "verdict.json", "work/trials/abc/outcome.json"}
    assert bucket(uri).read(LEASE) is None
    said = capsys.readouterr().out
    assert f"trial abc is in {uri}: 8 B written for it" in said
    assert f"{uri} is up to date: " in said
    assert "8 B of them for 1 trials" in said


def test_it_is_fetched_elsewhere_once(uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with held_in_store(config(uri), None):
        begin(config(uri))
    elsewhere(monkeypatch, tmp_path)
    folder = fetched(uri)
    assert folder.is_relative_to(tmp_path / "elsewhere")
    (folder / "report.html").write_text("made here")
    assert fetched(uri) == folder
    assert (folder / "report.html").read_text() == "made here"
    with followed(str(folder)) as same:
        assert same == folder


def test_what_a_process_here_works_on_is_read_as_it_is(uri: str) -> None:
    with held_in_store(config(uri), None):
        folder = begin(config(uri))
        with lock(folder):
            (folder.root / "leaderboard.json").write_text("newer than in the store")
            assert fetched(uri) == folder.root
            assert (folder.root / "leaderboard.json").exists()


def test_a_mistake_in_a_new_run_leaves_nothing(uri: str) -> None:
    def mistaken() -> None:
        with held_in_store(config(uri), None):
            open_folder(config(uri), None)
            raise UserError("cannot work")

    with pytest.raises(UserError, match="cannot work"):
        mistaken()
    assert bucket(uri).listed() == {}
    with held_in_store(config(uri), None):
        begin(config(uri))
    assert files(uri) == {"config.yaml"}


def test_a_new_run_does_not_go_over_another(uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with held_in_store(config(uri), None):
        begin(config(uri))
    elsewhere(monkeypatch, tmp_path)
    said = r"There is a run in .* already\. Continue it with --resume s3://"
    with pytest.raises(UserError, match=said), held_in_store(config(uri), None):
        pass
    assert files(uri) == {"config.yaml"}


@pytest.mark.parametrize("resumed", [False, True])
def test_what_is_of_no_run_is_never_touched(uri: str, resumed: bool) -> None:
    bucket(uri).write("mine/thesis.txt", b"of somebody")
    said = r"There is no run in" if resumed else r"is not empty: there is mine/thesis\.txt, which is of no run"
    given = (None, uri) if resumed else (config(uri), None)
    with pytest.raises(UserError, match=said), held_in_store(*given):
        pass
    assert {name: found.size for name, found in bucket(uri).listed().items()} == {"mine/thesis.txt": 11}


def test_a_run_whose_store_was_emptied_is_written_anew_from_here(uri: str) -> None:
    with held_in_store(config(uri), None):
        begin(config(uri))
    its = bucket(uri)
    its.remove(its.listed())
    said = r"There is no run in .*, but one of that address is in"
    with pytest.raises(UserError, match=said), held_in_store(config(uri), None):
        pass
    with held_in_store(None, uri):
        pass
    assert files(uri) == {"config.yaml"}
    manifest = Manifest.load(its)
    assert manifest is not None
    assert its.listed(OBJECTS).keys() == manifest.objects


def test_what_a_killed_push_left_is_deleted(uri: str) -> None:
    with held_in_store(config(uri), None):
        begin(config(uri))
    its = bucket(uri)
    its.write(f"{OBJECTS}/work/x.0123", b"x")
    with held_in_store(None, uri):
        pass
    assert f"{OBJECTS}/work/x.0123" not in its.listed()


def test_a_copy_is_gone_on_with_by_its_folder_too(uri: str) -> None:
    with held_in_store(config(uri), None):
        folder = begin(config(uri))
    with held_in_store(None, str(folder.root)):
        (folder.root / "verdict.json").write_text("{}")
    assert files(uri) == {"config.yaml", "verdict.json"}


def test_records_name_files_by_the_path_that_they_have_here(
    uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with held_in_store(config(uri), None):
        folder = begin(config(uri))
        model = FftModel(
            model=str(folder.fft / "best"),
            fingerprint="f",
            depth=2,
            score=0.5,
            standard_error=0.1,
            watched=0.5,
            scores=str(folder.scores / "x.json"),
            pretrained="owner/name",
        )
        model.save(folder.fft_model)
    elsewhere(monkeypatch, tmp_path)
    here = RunFolder(fetched(uri))
    assert here.root != folder.root
    found = FftModel.load(here.fft_model)
    assert (found.model, found.scores, found.pretrained) == (
        str(here.fft / "best"),
        str(here.scores / "x.json"),
        "owner/name",
    )


def test_a_store_that_stays_away_ends_what_goes_on(
    uri: str, server: object_store.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = object_store.Wire(server.port)
    wire.mend()
    monkeypatch.setenv("AWS_ENDPOINT_URL", wire.endpoint)
    monkeypatch.setattr(leases, "STALE_S", 3.0)  # it cannot be given back, and its process does not end
    given = config(uri, push_patience_minutes=0.02)

    def cut_off() -> None:
        with held_in_store(given, None):
            begin(given)
            wire.cut()
            time.sleep(60)  # which is interrupted
            raise AssertionError

    with pytest.raises(RunFailed, match=r"What is finished is kept in .*--resume s3://"):
        cut_off()
    wire.mend()
    (place_of(uri) / "verdict.json").write_text("{}")
    with held_in_store(None, uri):
        pass
    assert files(uri) == {"config.yaml", "verdict.json"}
    wire.cut()


def test_who_has_lost_the_run_writes_nothing_more(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "RENEW_S", 0.5)
    other = replace(Holder.me(), host="east", space="east")

    def taken_over() -> None:
        with held_in_store(config(uri), None):
            folder = begin(config(uri))
            while not files(uri):
                time.sleep(0.1)
            bucket(uri).write(LEASE, json.dumps(asdict(other)).encode())
            (folder.root / "verdict.json").write_text("{}")
            for _ in range(100):  # which is interrupted
                time.sleep(0.3)
                bucket(uri).write(LEASE, json.dumps(asdict(other)).encode())  # it may have been renewed right then
            raise AssertionError

    with pytest.raises(RunFailed, match=r"no longer this process's: it is held by .* on east"):
        taken_over()
    assert "verdict.json" not in files(uri)
    assert bucket(uri).read(LEASE) is not None


def test_it_works_in_a_thread_too(uri: str) -> None:
    said: list[str] = []

    def work() -> None:
        with held_in_store(config(uri), None):
            begin(config(uri))
        said.append("done")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert said == ["done"]
    assert files(uri) == {"config.yaml"}


def test_nobody_is_asked_where_nobody_listens(uri: str) -> None:
    with held_in_store(config(uri), None):
        begin(config(uri))
    folder = RunFolder(fetched(uri))
    with pytest.raises(UserError, match="Ask on the machine where it works"):
        ask_to_try(folder, {})
    with pytest.raises(UserError, match=r"No search works on s3://.* now on this machine"):
        stop(folder.root)
    with lock(folder):
        ask_to_try(folder, {})


def test_a_worker_that_does_not_see_the_copy_refuses(tmp_path: Path, uri: str) -> None:
    scratch = scratch_of(uri)
    assert isinstance(scratch, Scratch)
    with held_in_store(config(uri), None):
        begin(config(uri))
    note = note_above(scratch.run / "work" / "groups" / "fft")
    check_seen(str(note))
    check_seen(None)
    with pytest.raises(RunFailed, match=rf"does not see .*\({SCRATCH} names another"):
        check_seen(str(tmp_path / "nowhere" / "scratch.json"))
