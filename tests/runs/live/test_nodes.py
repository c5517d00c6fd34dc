"""What Ray says of nodes and workers."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from mft_ray.runs.live.nodes import CardUse, NodeUse, WorkerUse, node_use, told_of_nodes

GIGABYTE = 10**9
REPORT: dict[str, Any] = {
    "mem": [64 * GIGABYTE, 40 * GIGABYTE, 37.5, 24 * GIGABYTE],
    "gpus": [{"index": 0, "name": "H100", "memoryUsed": 1000, "memoryTotal": 80_000, "utilizationGpu": 93}],
    "workers": [
        {"pid": 7, "cmdline": ["ray::RayTrainWorker"], "memoryInfo": {"rss": 2.0e9}, "gpuMemoryUsage": 900},
        {"pid": 8, "cmdline": ["ray::RayTrainWorker.execute"], "memoryInfo": None},
        {"pid": 9, "cmdline": ["ray::IDLE"], "memoryInfo": {"rss": 1.0e8}},
        {"pid": 10, "cmdline": ["python", "RayTrainWorker"], "memoryInfo": {"rss": 1.0e8}},
        {"pid": 11, "cmdline": None},
    ],
}


def test_a_report_is_read_as_ray_writes_it() -> None:
    found = node_use("here", (16.0, 4.0), (1.0, 1.0), REPORT)
    assert (found.host, found.cpus, found.cpus_used, found.gpus_used) == ("here", 16.0, 4.0, 1.0)
    assert (found.memory, found.memory_used) == (64 * GIGABYTE, 24 * GIGABYTE)
    assert found.cards == (CardUse("H100", 1000 * 2**20, 80_000 * 2**20, 93),)
    assert found.workers == (WorkerUse(7, 2 * GIGABYTE, 900 * 2**20), WorkerUse(8, 0))


def test_a_node_that_has_not_reported_yet() -> None:
    assert node_use("here", (2.0, 0.0), (0.0, 0.0), {}) == NodeUse("here", 2.0, 0.0, 0.0, 0.0)


def test_the_models_that_ray_promises_to_keep_have_what_is_read() -> None:
    from ray.dashboard.modules.reporter import reporter_models

    assert {"mem", "gpus", "workers"} <= reporter_models.StatsPayload.model_fields.keys()
    assert {"name", "memoryUsed", "memoryTotal", "utilizationGpu"} <= (
        reporter_models.GpuUtilizationInfo.model_fields.keys()
    )
    assert {"pid", "cmdline", "memoryInfo", "gpuMemoryUsage"} <= reporter_models.ProcessInfo.model_fields.keys()


@pytest.mark.slow
def test_a_ray_that_is_up_says_what_its_nodes_use(ray_cluster: None) -> None:
    told: list[list[NodeUse]] = []
    enough = threading.Event()

    def tell(nodes: list[NodeUse]) -> None:
        told.append(nodes)
        if nodes[0].memory is not None:
            enough.set()

    problems: list[Exception] = []
    with told_of_nodes(tell, problems.append):
        assert enough.wait(60)
    [node] = told[-1]
    assert node.cpus == 2
    assert 0 <= node.cpus_used <= 2
    assert node.memory is not None
    assert node.memory_used is not None
    assert 0 < node.memory_used < node.memory
    # Nothing comes after it has ended, and its thread is gone.
    count = len(told)
    assert "nodes" not in {thread.name for thread in threading.enumerate()}
    assert problems == []
    assert len(told) == count


@pytest.mark.slow
def test_what_fails_is_told_and_nothing_else_is_disturbed(ray_cluster: None) -> None:
    problems: list[Exception] = []
    failed = threading.Event()

    def fail(nodes: list[NodeUse]) -> None:
        raise ValueError("no disk")

    def note(error: Exception) -> None:
        problems.append(error)
        failed.set()

    with told_of_nodes(fail, note):
        assert failed.wait(60)
    assert [str(each) for each in problems] == ["no disk"]
