"""One process at a time works on a run in an object store."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from uuid import uuid4

import object_store
import pytest

from mft_ray.errors import UserError
from mft_ray.store import lease as leases
from mft_ray.store.address import Address
from mft_ray.store.bucket import Bucket, StoreFailed
from mft_ray.store.lease import Holder, Lease
from mft_ray.store.manifest import LEASE


@pytest.fixture(scope="module")
def server() -> Iterator[object_store.Server]:
    with object_store.server() as its, pytest.MonkeyPatch.context() as patch:
        for name, value in its.environment.items():
            patch.setenv(name, value)
        yield its


@pytest.fixture
def bucket(server: object_store.Server, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setattr(leases, "STALE_S", 6.0)
    return Bucket(Address.parse(f"s3://{object_store.BUCKET}/{uuid4().hex}"), 10, print)


def held_by(bucket: Bucket, holder: Holder) -> None:
    bucket.write(LEASE, json.dumps(asdict(holder)).encode())


def elsewhere() -> Holder:
    return replace(Holder.me(), host="east", space="east")


def test_a_second_session_is_refused_while_the_first_renews_it(bucket: Bucket) -> None:
    first, second = Lease(bucket, print), Lease(bucket, print)
    first.take()
    first.renew()
    # Both are of this process, which is there: only time tells.
    began = time.monotonic()
    over = threading.Event()

    def renew() -> None:
        while not over.wait(1):
            first.renew()

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(UserError, match="Another process is working on s3://"):
            second.take()
    finally:
        over.set()
        thread.join()
    assert time.monotonic() - began < 20
    first.check()
    first.give_back()
    second.take()
    assert second.lost is None


def test_one_whose_process_is_known_to_be_gone_is_taken_over_at_once(bucket: Bucket) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    held_by(bucket, replace(Holder.me(), pid=ended.pid))
    said: list[str] = []
    Lease(bucket, said.append).take()
    assert said == []


def test_a_number_that_another_process_has_now_does_not_hold_it(bucket: Bucket) -> None:
    held_by(bucket, replace(Holder.me(), began=Holder.me().began - 1000))
    assert Holder(**json.loads(bucket.read(LEASE) or b"")).is_gone()


def test_one_of_another_host_is_taken_over_once_it_is_not_renewed(bucket: Bucket) -> None:
    held_by(bucket, elsewhere())
    said: list[str] = []
    began = time.monotonic()
    Lease(bucket, said.append).take()
    assert time.monotonic() - began >= 6
    assert "is held by" in said[0]


def test_an_old_one_is_taken_over_at_once_by_the_clock_of_the_store(bucket: Bucket) -> None:
    held_by(bucket, elsewhere())
    time.sleep(8)
    said: list[str] = []
    Lease(bucket, said.append).take()
    assert said == []


def test_who_was_taken_over_notices(bucket: Bucket) -> None:
    first = Lease(bucket, print)
    first.take()
    held_by(bucket, elsewhere())
    for look in (first.check, first.renew):
        with pytest.raises(StoreFailed, match="no longer this process's") as found:
            look()
        assert found.value.final
    first.give_back()
    assert bucket.read(LEASE) is not None  # the other's


def test_a_damaged_one_holds_nobody_off(bucket: Bucket) -> None:
    bucket.write(LEASE, b"{")
    Lease(bucket, print).take()
