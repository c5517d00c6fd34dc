"""A private Ray, as every long command starts one where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

SCRIPT = """
import psutil
from mft_ray.search.cluster import connected

with connected(1):
    processes = psutil.Process().children(recursive=True)
left = [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
print([process.name() for process in left if process.name().startswith("ray-dashboard")], len(processes))
"""


def test_no_process_of_a_private_ray_outlives_it() -> None:
    """The dashboard is several processes, which go on writing for seconds after ray.shutdown."""
    with tempfile.TemporaryDirectory(dir="/tmp") as home:  # short, for Ray's sockets
        environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "TMPDIR")}
        ended = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**environment, "RAY_TMPDIR": home},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ended.returncode == 0, ended.stderr
        left, count = ended.stdout.rsplit(maxsplit=1)
        assert left.strip() == "[]"
        assert int(count) > 10  # the dashboard's were seen at all
        assert os.listdir(home) == []
