"""What a real S3 server refuses, and what happens when it is away."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import object_store
import pytest

from mft_ray.errors import UserError
from mft_ray.preflight.stores import look_at_store
from mft_ray.runs.stored import fetched, held_in_store
from mft_ray.store.address import Address
from mft_ray.store.bucket import Bucket, StoreFailed, digest_of
from mft_ray.store.scratch import SCRATCH

RUN = f"s3://{object_store.BUCKET}/runs/mine"


@pytest.fixture(scope="module")
def server() -> Iterator[object_store.Server]:
    with object_store.server() as its:
        yield its


@pytest.fixture
def around(server: object_store.Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> object_store.Server:
    for name, value in {**server.environment, SCRATCH: str(tmp_path / "scratch")}.items():
        monkeypatch.setenv(name, value)
    return server


def test_objects_are_written_read_listed_and_deleted(around: object_store.Server, tmp_path: Path) -> None:
    bucket = Bucket(Address.parse(f"{RUN}/objects"), 5, print)
    assert bucket.listed() == {}
    assert (bucket.read("x"), bucket.found("x")) == (None, None)
    large = bytes(range(256)) * 80_000  # several parts
    (tmp_path / "large").write_bytes(large + b"more since")
    bucket.write("x", b"")
    bucket.upload("a/large", tmp_path / "large", len(large))
    assert bucket.read("x") == b""
    assert {name: found.size for name, found in bucket.listed().items()} == {"x": 0, "a/large": len(large)}
    assert bucket.listed("a").keys() == {"a/large"}
    assert bucket.download("a/large", tmp_path / "copy") == digest_of(tmp_path / "large", len(large))
    assert (tmp_path / "copy").read_bytes() == large
    assert bucket.download("none", tmp_path / "none") is None
    bucket.remove(["x", "x", "a/large"])
    assert bucket.listed() == {}
    assert (bucket.traffic.written, bucket.traffic.read) == (len(large), len(large))


def refused(problem: str, uri: str = RUN) -> None:
    """Have whoever reads a run, begins one or looks at its store be told in a paragraph."""
    with pytest.raises(UserError, match=problem) as found:
        fetched(uri)
    assert "Traceback" not in str(found.value)
    assert "\n" not in str(found.value)
    with pytest.raises(UserError, match=problem), held_in_store(None, uri):
        pass
    [finding] = look_at_store(Address.parse(uri))
    assert finding.status == "wrong"


def test_a_bucket_that_is_not_there(around: object_store.Server) -> None:
    with pytest.raises(UserError, match="There is no run in"):
        fetched("s3://none/mine")
    with pytest.raises(UserError, match="no such bucket"), held_in_store(None, "s3://none/mine"):
        pass
    [finding] = look_at_store(Address.parse("s3://none/mine"))
    assert finding.status == "wrong"
    assert "no such bucket. Make it, or give another" in finding.text


def test_a_run_that_is_not_there(around: object_store.Server) -> None:
    with pytest.raises(UserError, match="There is no run in"):
        fetched(f"{RUN}/none")
    with pytest.raises(UserError, match="There is no run in"), held_in_store(None, f"{RUN}/none"):
        pass
    assert Bucket(Address.parse(f"{RUN}/none"), 5, print).listed() == {}


@pytest.mark.parametrize("known", [False, True])
def test_credentials_that_are_unknown_or_not_enough(
    known: bool, around: object_store.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Requests that make the user come before moto begins to look at who asks.
    with object_store.server(INITIAL_NO_AUTH_ACTION_COUNT="3") as strict:
        monkeypatch.setenv("AWS_ENDPOINT_URL", strict.endpoint)
        if known:
            iam = boto3.client("iam", endpoint_url=strict.endpoint, region_name="us-east-1")
            iam.create_user(UserName="reader")
            made = iam.create_access_key(UserName="reader")["AccessKey"]
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", made["AccessKeyId"])
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", made["SecretAccessKey"])
        else:
            for _ in range(2):
                boto3.client("s3", endpoint_url=strict.endpoint).list_buckets()
        refused("refuses it to these credentials" if known else "does not know these credentials")


def test_an_endpoint_that_does_not_answer(around: object_store.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mft_ray.runs.stored._ASK_S", 1.0)
    monkeypatch.setattr("mft_ray.preflight.stores._PATIENCE_S", 1.0)
    wire = object_store.Wire(around.port)  # which is not there yet
    refused("NETWORK_CONNECTION", f"{RUN}?endpoint_override={wire.endpoint}")


def test_an_endpoint_whose_host_has_no_address(around: object_store.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://nowhere.invalid:9000")
    monkeypatch.setattr("mft_ray.runs.stored._ASK_S", 1.0)
    monkeypatch.setattr("mft_ray.preflight.stores._PATIENCE_S", 1.0)
    refused("Is the endpoint right")


def test_the_doctor_says_that_a_store_does_what_is_needed(around: object_store.Server) -> None:
    [finding] = look_at_store(Address.parse(RUN))
    assert finding.status == "ok"
    assert "MB/s written" in finding.text
    assert Bucket(Address.parse(RUN), 5, print).listed() == {}


def test_a_store_that_is_away_for_seconds_is_waited_for(
    around: object_store.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = object_store.Wire(around.port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", wire.endpoint)
    said: list[str] = []
    bucket = Bucket(Address.parse(f"{RUN}/away"), 60, said.append)
    back = threading.Timer(6, wire.mend)
    back.start()
    bucket.write("x", b"1")
    assert bucket.read("x") == b"1"
    wire.cut()
    assert len(said) == 2
    assert "it is tried again, for" in said[0]
    assert said[1].endswith("answers again")


def test_one_that_stays_away_is_given_up(around: object_store.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", object_store.Wire(around.port).endpoint)
    began = time.monotonic()
    with pytest.raises(StoreFailed, match="to write x has failed"):
        Bucket(Address.parse(RUN), 3, print).write("x", b"1")
    assert 3 <= time.monotonic() - began < 30
