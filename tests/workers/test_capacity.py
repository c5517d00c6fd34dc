"""How many trials fit a real cluster at once, and what is said when none does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
import yaml

from mft_ray.config import ScalingConfig
from mft_ray.errors import UserError
from mft_ray.workers.capacity import NodeType, concurrent_trials

pytestmark = pytest.mark.usefixtures("ray_cluster")  # two CPUs, no GPU


@pytest.mark.parametrize(
    ("scaling", "limit", "trials"),
    [
        ({}, None, 2),
        ({}, 1, 1),
        ({}, 5, 2),
        ({"workers": 2}, None, 1),
        ({"cpus_per_worker": 2}, None, 1),
        ({"cpus_per_worker": 1.5}, None, 1),
        ({"cpus_per_worker": 0.5}, None, 4),
        ({"workers": 3, "cpus_per_worker": 0.5}, None, 1),
        ({"cpus_per_worker": 0.1}, None, 20),  # 2 / 0.1 is a little less than 20 in floating point
    ],
)
def test_as_many_trials_as_worker_groups_fit(scaling, limit, trials):
    assert concurrent_trials(ScalingConfig(**scaling), limit) == trials


@pytest.mark.parametrize(
    ("scaling", "asked"),
    [
        ({"workers": 3}, r"3 worker\(s\) with 1 CPU each"),
        ({"cpus_per_worker": 4}, r"1 worker\(s\) with 4 CPU each"),
        ({"gpus_per_worker": 1}, r"1 worker\(s\) with 1 CPU, 1 GPU each"),
        ({"workers": 2, "cpus_per_worker": 1.5}, r"2 worker\(s\) with 1.5 CPU each"),
    ],
)
def test_what_the_cluster_can_never_hold_is_refused(scaling, asked):
    with pytest.raises(UserError, match=asked) as caught:
        concurrent_trials(ScalingConfig(**scaling))
    message = str(caught.value)
    assert "this cluster has 1 x (2 CPU, 0 GPU) and cannot grow" in message
    assert "Lower scaling.workers, scaling.cpus_per_worker or scaling.gpus_per_worker" in message
    assert "\n" not in message


def test_a_cluster_that_is_said_to_grow_holds_what_it_can_become():
    grown = {"CPU": 64.0, "GPU": 8.0}
    assert concurrent_trials(ScalingConfig(gpus_per_worker=1, cluster_grows_to=grown)) == 8
    assert concurrent_trials(ScalingConfig(workers=4, gpus_per_worker=1, cluster_grows_to=grown), 3) == 2
    with pytest.raises(UserError, match=r"can grow to 1 x \(64 CPU, 8 GPU\)"):
        concurrent_trials(ScalingConfig(workers=9, gpus_per_worker=1, cluster_grows_to=grown))


def test_what_the_cluster_has_counts_even_where_less_was_said():
    assert concurrent_trials(ScalingConfig(cluster_grows_to={"CPU": 1.0})) == 2


def test_the_autoscalers_own_file_says_what_may_come(tmp_path):
    kinds = {
        "head": {"resources": {"CPU": 2}, "max_workers": 0},
        "gpu": {"resources": {"CPU": 16, "GPU": 4}, "max_workers": 3},
    }
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump({"available_node_types": kinds}))
    with autoscaler(file, "10.0.0.1:6379"), pytest.raises(UserError, match="cannot grow"):  # another cluster's
        concurrent_trials(ScalingConfig(gpus_per_worker=1))
    with autoscaler(file, ray.get_runtime_context().gcs_address):
        assert concurrent_trials(ScalingConfig(gpus_per_worker=1)) == 12
        with pytest.raises(UserError, match=r"can grow to .*3 x \(16 CPU, 4 GPU\)"):
            concurrent_trials(ScalingConfig(workers=13, gpus_per_worker=1))


@contextmanager
def autoscaler(file: Path, cluster: str) -> Iterator[None]:
    """A process with the command line of the autoscaler's that `ray up` starts on the head."""
    options = [f"--gcs-address={cluster}", f"--autoscaling-config={file}"]
    process = subprocess.Popen([sys.executable, "-c", "input()", *options], stdin=subprocess.PIPE)
    yield
    process.communicate(b"\n")


def test_a_worker_does_not_span_nodes():
    assert NodeType({"CPU": 3.0}, 4).fits({"CPU": 2.0}) == 4
    assert NodeType({"CPU": 8.0, "GPU": 1.0}, 2).fits({"CPU": 1.0, "GPU": 1.0}) == 2
    assert NodeType({"CPU": 8.0}, 2).fits({"CPU": 1.0, "GPU": 1.0}) == 0
    assert NodeType({"CPU": 8.0}, float("inf")).fits({"CPU": 1.0}) == float("inf")
    assert NodeType({"CPU": 0.0}, float("inf")).fits({"CPU": 1.0}) == 0
