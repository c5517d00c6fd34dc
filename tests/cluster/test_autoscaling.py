"""A search on a cluster that Ray's own autoscaler grows and shrinks, submitted as a job, as a user does it.

One machine plays all nodes (provider ``fake_multinode``); the autoscaler, the nodes' raylets and the job are real.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
import yaml
from small_searches import at_work

pytestmark = pytest.mark.slow

TRIALS = 4
MAXIMUM = 2  # nodes beside the head
STEPS, EVAL_EVERY = 1200, 100
TIMEOUT_S = 600
# The same processes as with the defaults; only their clocks run faster.
FAST = {
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "AUTOSCALER_HEARTBEAT_TIMEOUT_S": "15",
    "RAY_health_check_period_ms": "1000",
}
IDLE_MINUTES = 0.1


@dataclass(frozen=True)
class Cluster:
    """A head without CPUs of its own, and an autoscaler.

    Attributes:
        dashboard: where jobs are submitted.
        env: of its clients.
    """

    dashboard: str
    env: dict[str, str]

    def submit(self, folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
        """Submit a search that writes what it says to ``folder/said``."""
        command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", self.dashboard]
        # All nodes of this machine unpack the working dir to one place, and each that comes does so anew, under the
        # feet of the job. So that the job steps aside.
        aside = ["env", "-C", str(folder)]
        with (folder / "said").open("wb") as said:
            return subprocess.Popen(
                [*command, "--working-dir", ".", "--", *aside, "python", "-m", "mft_ray.tune", *arguments],
                cwd=folder,
                env=self.env,
                stdout=said,
                stderr=subprocess.STDOUT,
            )

    def listed(self, what: str, state: str) -> list[dict[str, Any]]:
        command = [sys.executable, "-m", "ray.scripts.scripts", "list", what, "--address", self.dashboard]
        options = ["--format", "json", "--filter", f"state={state}"]
        said = subprocess.check_output([*command, *options], env=self.env, text=True)
        found: list[dict[str, Any]] = [] if "No resource in the cluster" in said else json.loads(said)
        return found

    def nodes(self) -> dict[str, psutil.Process]:
        """The raylet of every node that the autoscaler has started, by the node's id."""
        return {
            process.environ()["RAY_CLOUD_INSTANCE_ID"]: process
            for process in psutil.process_iter()
            if is_raylet(process, self.env)
        }


def is_raylet(process: psutil.Process, env: dict[str, str]) -> bool:
    with contextlib.suppress(psutil.Error):  # somebody else's, or gone
        theirs = process.environ() if process.name() == "raylet" else {}
        return theirs.get("MFT_RAY_LOCAL_ID") == env["MFT_RAY_LOCAL_ID"] and "RAY_CLOUD_INSTANCE_ID" in theirs
    return False


@pytest.fixture(scope="module")
def cluster(private_ray: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    [port] = private_ray.free_ports(1)
    file = tmp_path_factory.mktemp("cluster") / "cluster.yaml"
    file.write_text(yaml.safe_dump(cluster_file(f"127.0.0.1:{port}")))
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as short:
        env = private_ray.environment(
            {**os.environ, **FAST, "RAY_FAKE_CLUSTER": "1", "RAY_TMPDIR": short}, launch_dir=short
        )
        del env["MFT_RAY_LAUNCH_DIR"]  # as on a cluster that is not this machine
        patch.setenv(private_ray.MARK, env[private_ray.MARK])  # who carries it is stopped in the end
        options = [f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=0", f"--autoscaling-config={file}"]
        ray = private_ray.start(options, env)
        yield Cluster(ray.dashboard, env)
        private_ray.stop(ray)


def cluster_file(address: str) -> dict[str, Any]:
    none: list[str] = []
    return {
        "cluster_name": "growing",
        "max_workers": MAXIMUM,
        "idle_timeout_minutes": IDLE_MINUTES,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": address,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {}, "node_config": {}, "min_workers": 0, "max_workers": 0},
            "worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": MAXIMUM},
        },
        "head_node_type": "ray.head.default",
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": none,
        "file_mounts_sync_continuously": False,
        "rsync_exclude": none,
        "rsync_filter": none,
        "initialization_commands": none,
        "setup_commands": none,
        "head_setup_commands": none,
        "worker_setup_commands": none,
        "head_start_ray_commands": none,
        "worker_start_ray_commands": none,
    }


@dataclass
class Ended:
    """A search that lost a node.

    Attributes:
        folder: of the run.
        status: of the process that submitted the job.
        said: what the job printed.
        most: nodes beside the head, at most at once.
        lost: the node that was killed under a worker.
        steps: of each trial that was at work then, and the least that its progress ever said afterwards.
    """

    folder: Path
    status: int
    said: str
    most: int
    lost: str
    steps: dict[str, tuple[int, int]]


@pytest.fixture(scope="module")
def ended(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, make_tiny: Callable[[], dict[str, Any]]) -> Ended:
    home = tmp_path_factory.mktemp("growing")
    tree = make_tiny()
    tree["train"].update(steps=STEPS, eval_every=EVAL_EVERY)
    tree["search"] = {"trials": TRIALS, "stop": {"below_fft": False, "plateau": None}}
    (home / "tiny.yaml").write_text(yaml.safe_dump(tree))
    folder = home / "run"
    job = cluster.submit(home, "--config", "tiny.yaml", "--set", f"run.dir={folder}")
    most, lost, steps = 0, "", dict[str, tuple[int, int]]()
    deadline = time.monotonic() + TIMEOUT_S
    while job.poll() is None:
        assert time.monotonic() < deadline, (home / "said").read_text()
        nodes = cluster.nodes()
        most = max(most, len(nodes))
        now = at_work(folder)
        if not lost and len(nodes) == MAXIMUM and len(now) == MAXIMUM and min(now.values()) > EVAL_EVERY:
            lost, steps = kill_a_node(nodes), {trial: (step, step) for trial, step in now.items()}
        for trial in steps.keys() & now.keys():
            steps[trial] = (steps[trial][0], min(steps[trial][1], now[trial]))
        time.sleep(0.2)
    said = (home / "said").read_text()
    print(said)
    return Ended(folder, job.returncode, said, most, lost, steps)


def kill_a_node(nodes: dict[str, psutil.Process]) -> str:
    """Kill the raylet of a node that has a worker at work, and all that it started, as when a machine goes away."""
    for node, raylet in nodes.items():
        children = raylet.children(recursive=True)
        if any("RayTrainWorker" in " ".join(child.cmdline()) for child in children):
            for process in (raylet, *children):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            return node
    raise AssertionError("no node has a worker")


def test_all_trials_end_with_scores_and_a_verdict(ended: Ended) -> None:
    assert ended.status == 0
    rows = json.loads((ended.folder / "leaderboard.json").read_text())["trials"]
    assert len(rows) == TRIALS
    assert all(row["score"] is not None and row["status"] == "completed" for row in rows)
    assert json.loads((ended.folder / "verdict.json").read_text())["trial_id"] == rows[0]["trial_id"]


def test_nodes_come_as_trials_need_them_and_no_more(ended: Ended) -> None:
    assert ended.most == MAXIMUM
    assert f"search: {TRIALS} trials of at most {STEPS} steps, {MAXIMUM} at a time" in ended.said
    assert re.search(r"the cluster has grown from \d to 3 node\(s\)", ended.said)


def test_a_trial_whose_node_dies_goes_on_elsewhere_from_its_checkpoint(ended: Ended) -> None:
    assert ended.lost
    assert "the cluster has shrunk from 3 to 2 node(s)" in ended.said
    assert len(ended.steps) == MAXIMUM
    for step, least_afterwards in ended.steps.values():
        # What is lost is the way since the last evaluation.
        assert least_afterwards >= step - EVAL_EVERY > 0


def test_the_cluster_shrinks_when_the_search_has_ended(ended: Ended, cluster: Cluster) -> None:
    deadline = time.monotonic() + 90
    while cluster.nodes():
        assert time.monotonic() < deadline
        time.sleep(0.5)
    # One actor of Ray Train's is for all groups, and stays with the cluster.
    assert {actor["class_name"] for actor in cluster.listed("actors", "ALIVE")} <= {"_AutoscalingCoordinatorActor"}
    assert cluster.listed("placement-groups", "CREATED") == cluster.listed("placement-groups", "PENDING") == []


def test_what_no_node_can_ever_hold_is_refused(
    ended: Ended, cluster: Cluster, tmp_path: Path, make_tiny: Callable[[], dict[str, Any]]
) -> None:
    tree = {**make_tiny(), "scaling": {"cpus_per_worker": 2}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
    folder = tmp_path / "run"
    job = cluster.submit(tmp_path, "--config", "tiny.yaml", "--set", f"run.dir={folder}")
    job.wait(120)
    said = (tmp_path / "said").read_text()
    assert job.returncode != 0
    assert "A trial asks for 1 worker(s) with 2 CPU each" in said
    assert "can grow to 1 x (0 CPU, 0 GPU)" not in said
    assert f"{MAXIMUM} x (1 CPU, 0 GPU)" in said
    assert "Traceback" not in said.partition("A trial asks for")[0]
    assert not folder.exists()
    assert not cluster.nodes()
