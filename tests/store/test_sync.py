"""A run carried to a real server and back: at any moment what is there is one whole state or another."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import object_store
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mft_ray.store.address import Address
from mft_ray.store.bucket import Bucket, StoreFailed
from mft_ray.store.manifest import MANIFEST, OBJECTS, Entry, Manifest
from mft_ray.store.scratch import Scratch
from mft_ray.store.sync import pull, push, sweep
from mft_ray.store.written import Written

State = dict[str, bytes]
Make = Callable[..., tuple[Scratch, Bucket]]

PATHS = ["config.yaml", "study.db", "best/mask.safetensors", "work/trials/a/outcome.json", "work/tune/search/params"]
CONTENTS = [b"", b"0", b"1" * 70_000, b"2" * (2**20 + 7)]  # the last is larger than what is copied
# What is done to a run folder between two pushes: a file is written, or deleted.
CHANGES = st.lists(st.tuples(st.sampled_from(PATHS), st.sampled_from([*CONTENTS, None])), min_size=1, max_size=4)


class Killed(BaseException):
    """The process has come to its end here."""


class Mortal(Bucket):
    """A bucket whose process is killed right before one of its changes.

    Args:
        bucket: that is changed.
        left: number of changes before.
    """

    def __init__(self, bucket: Bucket, left: int) -> None:
        super().__init__(bucket.address, 10, print)
        self._left = left

    def _tried(self, doing, name, work):  # type: ignore[no-untyped-def]
        if doing in ("write", "delete"):
            if self._left == 0:
                raise Killed
            self._left -= 1
        return super()._tried(doing, name, work)


@pytest.fixture(scope="module", params=[object_store.Server, object_store.GoogleServer], ids=["s3", "gs"])
def server(request: pytest.FixtureRequest) -> Iterator[object_store.Server]:
    with object_store.server(request.param) as its, pytest.MonkeyPatch.context() as patch:
        for name, value in its.environment.items():
            patch.setenv(name, value)
        yield its


@pytest.fixture(scope="module")
def make(server: object_store.Server) -> Iterator[Make]:
    """Make a copy of a run on a machine of its own, and a way to its store."""
    with tempfile.TemporaryDirectory() as folder:

        def made(name: str | None = None) -> tuple[Scratch, Bucket]:
            address = Address.parse(server.address(name or uuid4().hex))
            scratch = Scratch(address, Path(folder) / uuid4().hex)
            scratch.run.mkdir(parents=True)
            return scratch, Bucket(address, 10, print)

        yield made


def write(run: Path, changes: list[tuple[str, bytes | None]]) -> None:
    for path, content in changes:
        file = run / path
        if content is None:
            file.unlink(missing_ok=True)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            replacing = file.with_name(f".{file.name}")
            replacing.write_bytes(content)
            os.replace(replacing, file)


def state(run: Path) -> State:
    files = (file for file in run.rglob("*") if file.is_file())
    found = {file.relative_to(run).as_posix(): file.read_bytes() for file in files}
    found.pop("work/store.json", None)  # what was written so far, which no state of the run is
    return found


def test_what_was_pushed_is_pulled_elsewhere(make: Make) -> None:
    here, bucket = make()
    write(here.run, [(path, path.encode() * 3) for path in PATHS])
    done = push(here, bucket)
    assert done is not None
    there, _ = make(here.address.name)
    manifest = pull(there, bucket)
    assert manifest is not None
    assert manifest.generation == done.generation
    assert state(there.run) == state(here.run)
    changed = {path: (here.run / path).stat().st_mtime_ns for path in PATHS}
    assert {path: (there.run / path).stat().st_mtime_ns for path in PATHS} == changed


def test_nothing_is_carried_twice(make: Make) -> None:
    here, bucket = make()
    write(here.run, [(path, b"x" * 1000) for path in PATHS])
    push(here, bucket)
    written = bucket.traffic.written
    assert push(here, bucket) is None
    os.utime(here.run / "study.db")  # the same content
    assert push(here, bucket) is None
    assert bucket.traffic.written == written
    read = bucket.traffic.read
    pull(here, bucket)  # only the manifest is read: the copy is what the store is
    assert bucket.traffic.read - read < 2000
    write(here.run, [("study.db", b"y" * 500)])
    push(here, bucket)
    # The object, the same under its own name, the manifest and the count.
    assert bucket.traffic.written - written < 2 * 500 + 2500


def test_what_is_private_to_processes_stays_here(make: Make) -> None:
    here, bucket = make()
    write(here.run, [("config.yaml", b"1")])
    private = ["work/lock", "work/cluster.json", "work/groups/a/stacks/0.txt", "work/data/x.lock"]
    private += ["work/.study.db.mft_ray.partial", "work/trials/a/checkpoints/partial-10/x.pt"]
    write(here.run, [(path, b"1") for path in private])
    push(here, bucket)
    manifest = Manifest.load(bucket)
    assert manifest is not None
    assert set(manifest.files) == {"config.yaml", "work/store.json"}


def test_what_others_read_has_its_own_name(make: Make) -> None:
    here, bucket = make()
    write(here.run, [("leaderboard.json", b"{}"), ("work/settled.json", b"{}")])
    push(here, bucket)
    assert bucket.read("leaderboard.json") == b"{}"
    assert bucket.read("work/settled.json") is None
    write(here.run, [("leaderboard.json", None)])
    push(here, bucket)
    assert bucket.read("leaderboard.json") is None


def test_bytes_are_counted_by_trial(make: Make) -> None:
    here, bucket = make()
    write(here.run, [("config.yaml", b"1" * 10), ("work/trials/a/x", b"1" * 200), ("work/trials/b/y/z", b"1" * 30)])
    push(here, bucket)
    write(here.run, [("work/trials/a/x", b"2" * 50)])
    push(here, bucket)
    written = Written.load(here.run)
    assert written is not None
    assert (written.bytes, written.objects, written.trials) == (290, 4, {"a": 250, "b": 30})
    there, _ = make(here.address.name)
    pull(there, bucket)
    assert Written.load(there.run) == written


def test_a_copy_that_is_ahead_is_left_as_it_is(make: Make) -> None:
    here, bucket = make()
    write(here.run, [("study.db", b"1")])
    push(here, bucket)
    write(here.run, [("study.db", b"2")])
    said: list[str] = []
    pull(here, bucket, said.append)
    assert ((here.run / "study.db").read_bytes(), said) == (b"2", [])


def test_a_copy_that_is_behind_is_replaced_and_what_is_lost_is_said(make: Make) -> None:
    here, bucket = make()
    write(here.run, [("study.db", b"1"), ("config.yaml", b"1"), ("best/mask.safetensors", b"1")])
    push(here, bucket)
    there, _ = make(here.address.name)
    pull(there, bucket)
    write(there.run, [("study.db", b"of there"), ("best/mask.safetensors", None)])
    push(there, bucket)
    write(here.run, [("config.yaml", b"2")])
    said: list[str] = []
    pull(here, bucket, said.append)
    assert state(here.run) == {"study.db": b"of there", "config.yaml": b"1"}
    assert not (here.run / "best").exists()
    assert len(said) == 1
    assert said[0].startswith("1 files in")


def test_records_that_name_files_by_the_old_path_are_written_with_the_next_change(make: Make) -> None:
    here, bucket = make()
    write(here.run, [("work/where.txt", str(here.run).encode()), ("config.yaml", b"1")])
    push(here, bucket)
    there, _ = make(here.address.name)
    moves: list[tuple[Path, Path]] = []

    def moved(old: Path, new: Path) -> list[str]:
        moves.append((old, new))
        (new / "work" / "where.txt").write_text(str(new))
        return ["work/where.txt"]

    said: list[str] = []
    pull(there, bucket, said.append, moved)
    pull(there, bucket, said.append, moved)
    assert moves == [(here.run, there.run)]
    push(there, bucket)
    pull(here, bucket, said.append)
    assert (here.run / "work" / "where.txt").read_text() == str(there.run)
    assert said == []


def test_what_is_no_longer_named_is_deleted(make: Make) -> None:
    here, bucket = make()
    for content in (b"1", b"2", b"3"):
        write(here.run, [("study.db", content), ("config.yaml", b"same")])
        push(here, bucket)
    manifest = Manifest.load(bucket)
    assert manifest is not None
    assert bucket.listed(OBJECTS).keys() == manifest.objects
    assert len(manifest.objects) == 3


def test_a_push_that_is_killed_at_any_request_leaves_one_whole_state_or_the_other(make: Make) -> None:
    here, bucket = make()
    there, _ = make(here.address.name)
    seen = []
    for left in range(12):
        before = state(here.run) if left else None
        write(here.run, [("study.db", str(left).encode()), ("best/mask.safetensors", str(left).encode() * 9)])
        try:
            push(here, Mortal(bucket, left))
        except Killed:
            found = state(there.run) if pull(there, bucket) else None
            assert found in (before, state(here.run))
            seen.append(found == state(here.run))
            push(here, bucket)
    assert set(seen) == {False, True}


def test_a_damaged_state_of_tunes_does_not_hold_up_the_rest(make: Make) -> None:
    here, bucket = make()
    write(here.run, [("work/tune/search/experiment_state-1.json", b"{"), ("config.yaml", b"1")])
    push(here, bucket)
    there, _ = make(here.address.name)
    pull(there, bucket)
    assert state(there.run) == state(here.run)


def test_a_lost_object_is_told_and_not_made_up(make: Make) -> None:
    here, bucket = make()
    write(here.run, [("study.db", b"1"), ("config.yaml", b"1")])
    push(here, bucket)
    manifest = Manifest.load(bucket)
    assert manifest is not None
    bucket.remove([manifest.files["study.db"].key("study.db")])
    there, _ = make(here.address.name)
    with pytest.raises(StoreFailed, match=r"damaged: objects .* such as that of study\.db"):
        pull(there, bucket)


def test_a_manifest_that_leads_out_of_the_run_is_refused(make: Make) -> None:
    here, bucket = make()
    write(here.run, [("study.db", b"1")])
    push(here, bucket)
    content = bucket.read(MANIFEST)
    assert content is not None
    found = json.loads(content)
    files = {f"../../{path}": Entry(**entry) for path, entry in found["files"].items()}
    Manifest(found["generation"], found["root"], files).save(bucket)
    there, _ = make(here.address.name)
    with pytest.raises(StoreFailed, match="does not hold what was written there"):
        pull(there, bucket)


def test_who_reads_while_it_is_written_gets_one_state_or_the_next(make: Make) -> None:
    here, bucket = make()
    write(here.run, [("config.yaml", b"1")])
    push(here, bucket)
    over, failed = threading.Event(), []

    def read() -> None:
        while not over.is_set():
            try:
                assert Manifest.load(bucket) is not None
            except Exception as error:
                failed.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(12):
        names = [f"work/{number}-{'x' * each}" for each in range(1, 2 + 10 * (number % 2))]
        write(here.run, [(name, b"1") for name in names])
        push(here, bucket)
        write(here.run, [(name, None) for name in names])
    over.set()
    for reader in readers:
        reader.join()
    assert failed == []


def test_tunes_states_are_taken_between_two_times_that_they_are_written(make: Make) -> None:
    """By who writes them in place every half a second, several one after the other; as Tune names them."""
    here, bucket = make()
    there, _ = make(here.address.name)
    tune = here.run / "work" / "tune" / "search"
    tune.mkdir(parents=True)
    over = threading.Event()

    def write_states() -> None:
        number = 0
        while not over.wait(0.6):
            number += 1
            for name in ("experiment_state-1.json", "search_gen_state-1.json", "searcher-state-1.pkl"):
                content = str(number + 100).encode() if name.startswith("experiment") else pickle.dumps(number)
                with (tune / name).open("wb") as file:
                    file.write(content[:1])
                    file.flush()
                    time.sleep(0.03)
                    file.write(content[1:])

    writer = threading.Thread(target=write_states)
    writer.start()
    try:
        for _ in range(4):
            time.sleep(0.5)
            push(here, bucket)
            pull(there, bucket)
            files = {file.name: file.read_bytes() for file in there.run.glob("work/tune/search/*")}
            numbers = {
                json.loads(content) - 100 if name.startswith("experiment") else pickle.loads(content)
                for name, content in files.items()
            }
            assert len(numbers) <= 1
    finally:
        over.set()
        writer.join()
    assert numbers


@pytest.mark.slow
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(CHANGES, st.integers(0, 12)), min_size=1, max_size=4))
def test_a_kill_between_two_requests_leaves_an_older_or_a_newer_whole_state(
    make: Make, sessions: list[tuple[list[tuple[str, bytes | None]], int]]
) -> None:
    """Each session changes files and is killed while it pushes; whoever pulls finds one state that was meant."""
    here, bucket = make()
    there, _ = make(here.address.name)
    last: State | None = None
    for changes, left in sessions:
        write(here.run, changes)
        wanted = state(here.run)
        try:
            push(here, Mortal(bucket, left))
            allowed = [wanted]
        except Killed:
            allowed = [last, wanted]
        found = state(there.run) if pull(there, bucket) else None
        assert found in allowed
        last = found
    push(here, bucket)
    sweep(bucket, Manifest.load(bucket))
    manifest = Manifest.load(bucket)
    assert (state(there.run) if pull(there, bucket) else {}) == state(here.run)
    assert bucket.listed(OBJECTS).keys() == (manifest.objects if manifest else set())


@pytest.mark.slow
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CHANGES, CHANGES, st.integers(0, 8))
def test_a_pull_that_was_ended_midway_is_gone_on_with(
    make: Make, first: list[tuple[str, bytes | None]], second: list[tuple[str, bytes | None]], left: int
) -> None:
    here, bucket = make()
    write(here.run, [("config.yaml", b"1"), *first])
    push(here, bucket)
    there, _ = make(here.address.name)
    pull(there, bucket)
    write(here.run, second)
    push(here, bucket)
    with pytest.MonkeyPatch.context() as patch:
        downloads = iter(range(left, -1, -1))

        def download(self: Bucket, name: str, path: Path) -> str | None:
            if next(downloads, 0) == 0:
                raise Killed
            return whole(self, name, path)

        whole = Bucket.download
        patch.setattr(Bucket, "download", download)
        with suppress(Killed):
            pull(there, bucket)
    pull(there, bucket)
    assert state(there.run) == state(here.run)
    shutil.rmtree(there.home)
