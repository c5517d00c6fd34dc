"""Workers on two hosts: namespaces with a raylet in each, whose host's name resolves to loopback."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import psutil  # type: ignore[import-untyped]
import pytest
import yaml
from hosts import Hosts, hosts

from mft_ray.workers.network import interface_of

LLAMA = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
TREE = {
    "model": {"architecture": {**LLAMA, "num_attention_heads": 2}},
    "data": {"task": "arithmetic", "n_train": 60, "n_validation": 40, "n_test": 50},
    "fft": {"train": {"steps": 4, "eval_every": 2, "batch_size": 4}},
    "scaling": {"workers": 2, "max_failures": 0},
}
TRAIN = [sys.executable, "-m", "mft_ray", "train", "--method", "fft", "--config", "config.yaml"]


@dataclass(frozen=True)
class Ended:
    """What came of a training.

    Attributes:
        status: its exit status.
        said: what it printed.
    """

    status: int
    said: str


@pytest.fixture(scope="module")
def two() -> Iterator[Hosts]:
    with hosts("north", "south") as both:
        (both.folder / "config.yaml").write_text(yaml.safe_dump(TREE))
        for each in both.by_name.values():
            each.start_ray(cpus=1)
        yield both


def train(two: Hosts, out: str, *options: str, **environment: str) -> Ended:
    log = f"{out}.log"
    status = two["north"].run([*TRAIN, "--out", out, *options], log, **environment)
    return Ended(status, (two.folder / log).read_text())


@pytest.mark.slow
def test_workers_of_two_hosts_train_although_a_hosts_name_is_loopback(two: Hosts) -> None:
    ended = train(two, "out")
    assert ended.status == 0, ended.said
    assert (two.folder / "out" / "outcome.json").exists()
    assert "step 4 of at most 4" in ended.said


@pytest.mark.slow
def test_workers_that_do_not_reach_each_other_say_by_what_they_tried(two: Hosts) -> None:
    ended = train(two, "refused", GLOO_SOCKET_IFNAME="lo")
    assert ended.status == 1
    assert "the workers could not connect to each other" in ended.said
    assert re.search(r"worker 0 on (north|south) \(10\.77\.0\.[12]\) by lo and ", ended.said)
    assert "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME" in ended.said
    assert "Traceback" not in ended.said


@pytest.mark.slow
def test_the_interface_that_a_configuration_names_is_taken_before_the_environments(two: Hosts) -> None:
    ended = train(two, "chosen", "--set", "scaling.network_interface=wire", GLOO_SOCKET_IFNAME="lo")
    assert ended.status == 0, ended.said


@pytest.mark.slow
def test_an_interface_that_a_host_does_not_have_is_refused_with_those_that_it_has(two: Hosts) -> None:
    ended = train(two, "lacking", "--set", "scaling.network_interface=ib0")
    assert ended.status == 1
    assert "scaling.network_interface is ib0, which not every worker's host has" in ended.said
    for name in ("north", "south"):
        assert f"{name} has lo, wire" in ended.said
    assert "Traceback" not in ended.said


def test_the_interface_of_an_address_is_found() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.255") is None
    for name, addresses in psutil.net_if_addrs().items():
        for address in addresses:
            if address.family in (socket.AF_INET, socket.AF_INET6):
                assert interface_of(address.address.partition("%")[0]) == name
