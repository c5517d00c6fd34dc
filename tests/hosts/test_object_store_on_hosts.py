"""A search on two hosts whose run folder is in an object store: the copy that it works in must be seen by both."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hosts import Hosts, hosts, wait

from mft_ray.store.scratch import SCRATCH

pytest.importorskip("moto.server", reason="moto is not installed: pip install 'moto[server]'")

pytestmark = [pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(900)]

PORT, BUCKET = 5955, "masks"
DESK = f"http://10.77.0.254:{PORT}"
URI = f"s3://{BUCKET}/run"
ENVIRONMENT = {
    "AWS_ENDPOINT_URL": DESK,
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
MAKE = f"import urllib.request as r; r.urlopen(r.Request('{DESK}/{BUCKET}', method='PUT'))"
READ = f"""
import sys
from mft_ray.store.address import Address
from mft_ray.store.bucket import Bucket
bucket = Bucket(Address.parse("{URI}"), 10, print)
print(bucket.read(sys.argv[1]).decode() if sys.argv[1:] else "\\n".join(bucket.listed()))
"""


@pytest.fixture(scope="module")
def net(make_tiny: Callable[[], dict[str, Any]]) -> Iterator[Hosts]:
    tree = make_tiny()
    tree["search"] = {"trials": 2}
    with hosts("north", "east") as its:
        (its.folder / "tiny.yaml").write_text(yaml.safe_dump(tree))
        server = [sys.executable, "-m", "moto.server", "-H", "0.0.0.0", "-p", str(PORT)]
        with (its.folder / "moto.log").open("wb") as log:
            subprocess.Popen([*its.desk, *server], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait(lambda: "Running on" in (its.folder / "moto.log").read_text(), "the store", 60)
        at_desk(its, MAKE)
        its["north"].start_ray(0)
        its["east"].start_ray(1)
        yield its


def at_desk(net: Hosts, program: str, *given: str) -> str:
    """What a program prints that is run at the desk."""
    environment = [f"{name}={value}" for name, value in ENVIRONMENT.items()]
    command = [*net.desk, "env", *environment, sys.executable, "-c", program, *given]
    return subprocess.check_output(command, text=True, timeout=60)


def searched(net: Hosts, scratch: Path, log: str) -> tuple[int, str]:
    given = {**ENVIRONMENT, SCRATCH: str(scratch)}
    command = [*(f"{name}={value}" for name, value in given.items()), "python", "-m", "mft_ray.tune"]
    job = net.submit([*command, "--config", "tiny.yaml", "--set", f"run.dir={URI}"], log)
    status = job.wait(480)
    return status, (net.folder / log).read_text()


def test_a_host_that_does_not_see_the_copy_is_named(net: Hosts) -> None:
    status, said = searched(net, net.folder / "ray" / "scratch", "refused")  # each host has another folder there
    assert status != 0
    assert f"error: {URI} is worked on in " in said, said
    assert "and east of this cluster do not see that" in said
    assert "Traceback" not in said
    assert at_desk(net, READ).strip() == ""


def test_a_copy_that_both_see_is_worked_on_by_both(net: Hosts) -> None:
    status, said = searched(net, net.folder / "scratch", "done")
    assert status == 0, said
    rows = json.loads(at_desk(net, READ, "leaderboard.json"))["trials"]
    assert [row["score"] is not None for row in rows] == [True, True]
    verdict = json.loads(at_desk(net, READ, "verdict.json"))
    assert verdict["trial_id"] in {row["trial_id"] for row in rows}
    assert f"{URI} is up to date: " in said
