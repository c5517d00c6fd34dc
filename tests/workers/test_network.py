"""Workers on two hosts: two network namespaces with a raylet in each, whose host's name resolves to loopback."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
import yaml
from namespaces import unshare

from mft_ray.workers.network import interface_of

TIMEOUT_S = 480
LLAMA = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
TREE = {
    "model": {"architecture": {**LLAMA, "num_attention_heads": 2}},
    "data": {"task": "arithmetic", "n_train": 60, "n_validation": 40, "n_test": 50},
    "fft": {"train": {"steps": 4, "eval_every": 2, "batch_size": 4}},
    "scaling": {"workers": 2, "max_failures": 0},
}
# As Debian and Ubuntu set hosts up. All that is started here ends with the first process of the namespace.
HOSTS = r"""
set -e
cd "$1"
printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$(hostname)" > hosts
mount --bind hosts /etc/hosts
ip link set lo up
unshare --net sleep infinity &
OTHER="nsenter --target $! --net"
until [ "$($OTHER readlink /proc/self/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.1; done
ip link add wire type veth peer name wire netns $!
ip addr add 10.77.0.1/24 dev wire
ip link set wire up
$OTHER ip addr add 10.77.0.2/24 dev wire
$OTHER ip link set wire up
$OTHER ip link set lo up
RAY="$2 -m ray.scripts.scripts start --num-cpus=1 --disable-usage-stats"
$RAY --head --node-ip-address=10.77.0.1 --port=6399 --temp-dir="$1/ray" > head.log 2>&1 < /dev/null
$OTHER $RAY --address=10.77.0.1:6399 --node-ip-address=10.77.0.2 > node.log 2>&1 < /dev/null
export RAY_ADDRESS=10.77.0.1:6399
TRAIN="$2 -m mft_ray train --method fft --config config.yaml"
set +e
$TRAIN --out out > trained.log 2>&1
echo $? > trained
GLOO_SOCKET_IFNAME=lo $TRAIN --out other > refused.log 2>&1
echo $? > refused
GLOO_SOCKET_IFNAME=lo $TRAIN --out chosen --set scaling.network_interface=wire > chosen.log 2>&1
echo $? > chosen.status
$TRAIN --out lacking --set scaling.network_interface=ib0 > lacking.log 2>&1
echo $? > lacking.status
"""


@pytest.fixture(scope="module")
def hosts() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="", dir="/tmp"))  # short, for Ray's sockets
    (folder / "config.yaml").write_text(yaml.safe_dump(TREE))
    foreign = ("RAY_", "GLOO_", "NCCL_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    environment |= {"RAY_TMPDIR": str(folder), "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    with (folder / "script.log").open("wb") as log:
        process = subprocess.Popen(
            [*unshare(), "bash", "-c", HOSTS, "hosts", str(folder), sys.executable],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            process.wait(TIMEOUT_S)
            yield folder
        finally:
            os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
            for path in folder.glob("*.log"):
                print(f"--- {path.name}\n{path.read_text(errors='replace')}")
            shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_workers_of_two_hosts_train_although_a_hosts_name_is_loopback(hosts: Path) -> None:
    assert (hosts / "trained").read_text().strip() == "0", (hosts / "trained.log").read_text()
    assert (hosts / "out" / "outcome.json").exists()
    assert "step 4 of at most 4" in (hosts / "trained.log").read_text()


@pytest.mark.slow
def test_workers_that_do_not_reach_each_other_say_by_what_they_tried(hosts: Path) -> None:
    assert (hosts / "refused").read_text().strip() == "1"
    said = (hosts / "refused.log").read_text()
    assert "the workers could not connect to each other" in said
    name = socket.gethostname()
    assert f"worker 0 on {name} (10.77.0." in said
    assert ") by lo and " in said
    assert "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_the_interface_that_a_configuration_names_is_taken_before_the_environments(hosts: Path) -> None:
    assert (hosts / "chosen.status").read_text().strip() == "0", (hosts / "chosen.log").read_text()


@pytest.mark.slow
def test_an_interface_that_a_host_does_not_have_is_refused_with_those_that_it_has(hosts: Path) -> None:
    assert (hosts / "lacking.status").read_text().strip() == "1"
    said = (hosts / "lacking.log").read_text()
    assert "scaling.network_interface is ib0, which not every worker's host has" in said
    assert f"{socket.gethostname()} has lo, wire" in said
    assert "Traceback" not in said


def test_the_interface_of_an_address_is_found() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.255") is None
    for name, addresses in psutil.net_if_addrs().items():
        for address in addresses:
            if address.family in (socket.AF_INET, socket.AF_INET6):
                assert interface_of(address.address.partition("%")[0]) == name
