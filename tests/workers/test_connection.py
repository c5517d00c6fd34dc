"""A private Ray, as every long command starts one where there is none."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from mft_ray.errors import UserError
from mft_ray.workers import connection as cluster

SCRIPT = """
import psutil
from mft_ray.workers.connection import connected

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
            timeout=400,
        )
        assert ended.returncode == 0, ended.stderr
        left, count = ended.stdout.rsplit(maxsplit=1)
        assert left.strip() == "[]"
        assert int(count) > 10  # the dashboard's were seen at all
        assert os.listdir(home) == []


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # short, for Ray's sockets
        yield Path(folder)


NESTED = """
import os, subprocess, sys
from pathlib import Path
from mft_ray.workers.connection import connected

with connected(1):
    print(Path(os.environ["RAY_TMPDIR"]).parent, flush=True)
    if len(sys.argv) > 1:  # another, started by this one
        sys.exit(subprocess.run([sys.executable, "-c", sys.argv[1]]).returncode)
"""


def test_a_ray_within_another_has_its_folder_beside_that(home: Path) -> None:
    ended = run(NESTED, home, NESTED)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [str(home)] * 2
    assert os.listdir(home) == []


def test_a_folder_of_too_long_a_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Ray's longest socket would not fit: a job system's scratch, most often."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(deep))
    with pytest.raises(UserError, match=r"RAY_TMPDIR is .* characters.* at most \d+ characters"), cluster.connected():
        pass
    assert list(deep.iterdir()) == []
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"RAY_TMPDIR is .*none, where there is no folder"), cluster.connected():
        pass


def run(script: str, home: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    foreign = ("RAY_", "TMPDIR", "HF_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**environment, "RAY_TMPDIR": str(home), "HOME": str(home / "home"), **more},
        capture_output=True,
        text=True,
        timeout=400,
    )


WORKERS = """
import json, os, re, sys
from pathlib import Path
import ray
from ray.util.state import list_nodes
from mft_ray.config import ScalingConfig
from mft_ray.workers.connection import connected
from mft_ray.workers.tasks import remote_like_worker

def seen():
    return {name: os.environ.get(name) for name in sys.argv[1:]} | {"token": os.environ.get("RAY_AUTH_TOKEN")}

with connected(1):
    told = ray.get(remote_like_worker(seen, ScalingConfig()).remote())
    assert len(list_nodes()) == 1  # by HTTP, from Ray's own dashboard
    import time
    time.sleep(3)  # logs are written meanwhile
    found = []
    for path in Path(os.environ["RAY_TMPDIR"]).rglob("*"):
        if path.is_file() and b"hush-hush" in path.read_bytes():
            found.append(str(path))
print(json.dumps([told, found]))
"""


def test_workers_have_what_they_need_and_no_log_has_a_secret(home: Path) -> None:
    """A cluster's nodes do not have the driver's environment; a private Ray's do, so it is taken from them here."""
    given = {
        "HF_TOKEN": "hush-hush",
        "HF_ENDPOINT": "https://hub.example",
        "HF_HUB_CACHE": "/cache",
        "https_proxy": "http://me:hush-hush@proxy.example:3128",
        "http_proxy": "http://me:hush-hush@127.0.0.1:9",  # where nobody listens
    }
    script = WORKERS.replace("sys.argv[1:]", repr([*given, "no_proxy"]))
    ended = run(script, home, **given)
    assert ended.returncode == 0, ended.stderr
    told, found = json.loads(ended.stdout.splitlines()[-1])
    assert {name: told[name] for name in given} == given
    assert "127.0.0.1" in told["no_proxy"]
    assert found == []
    assert len(told["token"]) == 32  # its own
    assert not (home / "home" / ".ray" / "auth_token").exists()


CLUSTER = """
import os, subprocess, sys
from mft_ray.workers.connection import connected

with connected(2):  # its processes have not what the driver below has
    address = open(os.path.join(os.environ["RAY_TMPDIR"], "ray", "ray_current_cluster")).read()
    given = dict(zip(sys.argv[2::2], sys.argv[3::2]))
    driver = subprocess.run([sys.executable, "-c", sys.argv[1]], env={**os.environ, "RAY_ADDRESS": address, **given})
sys.exit(driver.returncode)
"""
TRIAL = """
import json, os, sys
from pathlib import Path
import ray
from mft_ray.config import ScalingConfig
from mft_ray.workers.connection import connected
from mft_ray.workers.environment import inherit
from mft_ray.workers.tasks import remote_like_worker

def seen():
    return {name: os.environ.get(name) for name in NAMES}

class Trial:
    def ask(self, inherits):
        if inherits:
            inherit()
        return ray.get(remote_like_worker(seen, ScalingConfig()).remote())

with connected():
    trial = ray.remote(num_cpus=0)(Trial).remote()
    told = [ray.get(trial.ask.remote(inherits)) for inherits in (False, True)]
    import time
    time.sleep(3)  # logs are written meanwhile
    files = [path for path in Path(os.environ["RAY_TMPDIR"]).rglob("*") if path.is_file()]
    found = [str(path) for path in files if b"hush-hush" in path.read_bytes()]
print(json.dumps([told, found]))
"""


def test_what_the_driver_has_reaches_workers_that_a_trial_on_a_cluster_starts(home: Path) -> None:
    """Tune makes a trial's process, and that has its node's environment."""
    given = {
        "HF_TOKEN": "hush-hush",
        "HF_ENDPOINT": "https://hub.example",
        "https_proxy": "http://me:hush-hush@proxy.example:3128",
    }
    pairs = [each for pair in given.items() for each in pair]
    ended = run(CLUSTER, home, TRIAL.replace("NAMES", repr(list(given))), *pairs)
    assert ended.returncode == 0, ended.stderr
    (without, told), found = json.loads(ended.stdout.splitlines()[-1])
    assert without == dict.fromkeys(given)
    assert told == given
    assert found == []


def test_threads_of_workers_sleep_while_they_wait_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    from mft_ray.workers import environment

    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert environment.worker_environment()["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert environment.worker_environment()["OMP_WAIT_POLICY"] == "ACTIVE"


def test_secrets_travel_beside_the_environment_that_ray_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    from mft_ray.workers import environment

    monkeypatch.setenv("HF_TOKEN", "hush-hush")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:hush-hush@proxy.example")
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example")
    assert "hush-hush" not in str(environment.worker_environment())
    assert environment.worker_environment()["HF_ENDPOINT"] == "https://hub.example"
    call = environment.with_secrets(lambda: os.environ["HF_TOKEN"])
    several = environment.with_secrets(yielding)
    monkeypatch.delenv("HF_TOKEN")
    assert call() == "hush-hush"
    monkeypatch.delenv("HF_TOKEN")
    assert inspect.isgeneratorfunction(several)
    assert list(several()) == ["hush-hush"]


def yielding() -> Iterator[str]:
    yield os.environ["HF_TOKEN"]


def test_leftovers_go_and_what_another_container_uses_stays(home: Path) -> None:
    """Its processes have no number here."""
    folders = {}
    for name in ("leftover", "in-use", "young", "of-an-earlier-version"):
        folders[name] = home / f"mft-4999999-{name}"
        folders[name].mkdir()
        if name != "of-an-earlier-version":
            (folders[name] / "held").touch()
        if name != "young":
            os.utime(folders[name], (time.time() - 3600,) * 2)
    with FileLock(folders["in-use"] / "held"):
        os.utime(folders["in-use"], (time.time() - 3600,) * 2)
        cluster._remove_leftovers(home)
    assert {name for name, folder in folders.items() if not folder.exists()} == {"leftover"}
