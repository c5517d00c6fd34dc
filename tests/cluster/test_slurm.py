"""The script for Slurm as Slurm runs it, on a cluster of one node: sbatch's environment, and a ``srun`` that runs here.

`ray symmetric-run` ends with `ray stop`, which ends every Ray of the user that it sees. So all of it is in namespaces
of its own, where it sees none but its own.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from namespaces import unshare

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 600
JOB = "4711"
CPUS = (os.cpu_count() or 1) + 1  # which no Ray that counts this machine's would have
# What a compute node has: an address that is not loopback. Then sbatch's own: the script, in the submitting folder.
NODE = r"""
set -e
ip link set lo up
ip link add node type veth peer name other
ip addr add 10.78.0.1/24 dev node
ip link set node up
ip link set other up
cd "$1"
bash slurm.sbatch &
echo $! > script.pid
# As slurmctld does: so that only the script gets the signal.
while kill -0 $! 2> /dev/null; do
    if [ -e time-is-up ]; then rm time-is-up; kill -USR1 $!; fi
    sleep 0.1
done
set +e
wait $!
echo $? > status
"""
SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do echo "$1" >> srun.said; shift; done
exec "$@"
"""
SCONTROL = """#!/bin/bash
echo "$@" >> scontrol.said
"""


@dataclass
class Node:
    """A compute node that a job is started on, once or again.

    Attributes:
        folder: where the job was submitted.
        restarts: number of times that Slurm has started it again.
    """

    folder: Path
    restarts: int = 0

    @property
    def run(self) -> Path:
        """The run folder that the script chooses."""
        return self.folder / "runs" / f"mft-{JOB}"

    def start(self) -> subprocess.Popen[bytes]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_"))}
        slurm = {
            "SLURM_JOB_ID": JOB,
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_CPUS_PER_TASK": str(CPUS),
            "SLURM_RESTART_COUNT": str(self.restarts),
            "PATH": f"{self.folder}:{os.environ['PATH']}",
        }
        self.restarts += 1
        with (self.folder / "said").open("ab") as said:
            return subprocess.Popen(
                [*unshare(), "bash", "-c", NODE, "node", str(self.folder)],
                env={**kept, **slurm},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    def ended(self, process: subprocess.Popen[bytes]) -> int:
        process.wait(TIMEOUT_S)
        status = self.folder / "status"
        assert status.exists(), self.said()
        return int(status.read_text())

    def said(self) -> str:
        return (self.folder / "said").read_text(errors="replace")


@pytest.fixture
def node(make_tiny: Callable[[], dict[str, Any]]) -> Iterator[Node]:
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    text = (ROOT / "cluster" / "slurm.sbatch").read_text()
    values = {
        "YOUR_SHARED_FOLDER": f"{folder}/runs",
        "YOUR_CONFIG": "tiny.yaml",
        "YOUR_VENV": str(Path(sys.executable).parents[1]),
    }
    (folder / "slurm.sbatch").write_text(re.sub(r"YOUR_\w+", lambda match: values.get(match[0], "mine"), text))
    for name, script in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    tree = make_tiny() | {"search": {"trials": 2}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree))
    yield Node(folder)
    print((folder / "said").read_text(errors="replace"))
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def begun(node: Node) -> Iterator[subprocess.Popen[bytes]]:
    process = node.start()
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def test_a_job_that_runs_out_of_time_is_queued_again_and_goes_on_to_the_verdict(
    node: Node, begun: subprocess.Popen[bytes]
) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while "1/4 FFT baseline" not in node.said():
        assert begun.poll() is None, node.said()
        assert time.monotonic() < deadline, node.said()
        time.sleep(0.2)
    (node.folder / "time-is-up").touch()
    assert node.ended(begun) == 75, node.said()
    assert f"--resume {node.run}" in node.said()
    assert (node.folder / "scontrol.said").read_text() == f"requeue {JOB}\n"
    assert not node.run.with_suffix(".pid").exists()

    again = node.start()
    try:
        assert node.ended(again) == 0, node.said()
    finally:
        if again.poll() is None:
            os.killpg(again.pid, signal.SIGKILL)
    assert (node.run / "verdict.json").exists()
    assert f"2/4 search: 2 trials of at most 30 steps, {CPUS} at a time" in node.said()  # on the job's Ray
    assert (node.folder / "scontrol.said").read_text() == f"requeue {JOB}\n"
    assert f"--cpus-per-task={CPUS}" in (node.folder / "srun.said").read_text()
    assert not Path(f"/tmp/mft-{JOB}").exists()
