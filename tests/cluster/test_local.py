"""The local launcher, with real Rays: ours, and another one that must not notice."""

import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import psutil  # type: ignore[import-untyped]
import pytest

ROOT = Path(__file__).parents[2]
LAUNCHER = ROOT / "cluster" / "local.py"
TIMEOUT_S = 240

OTHER_RAY = """
import logging, os, sys
import ray

os.environ["RAY_AUTH_MODE"] = "disabled"
ray.init(address="local", num_cpus=1, _temp_dir=sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)
print("up", flush=True)
sys.stdin.readline()
print(ray.get(ray.remote(lambda: 6 * 7).remote()), flush=True)
"""

REPORT = """
import os, sys
import ray

print("python", sys.executable)
print("file", open("input.txt").read())
print("launched from", os.environ["MFT_RAY_LAUNCH_DIR"])
ray.init(log_to_driver=False)
print("cpus", int(ray.cluster_resources()["CPU"]))
sys.exit(int(sys.argv[1]))
"""

OF_THIS_FOLDER = """
import os
import ray
import mine

ray.init(log_to_driver=False)
print("here", os.getcwd(), ray.get(ray.remote(mine.name).remote()))
"""

ORPHAN = """
import subprocess
import time

# Outlives its parent, in a session of its own, as a careless job's would.
subprocess.run("sleep 1000 & echo orphan $!", shell=True, start_new_session=True)
print("ready", flush=True)
time.sleep(1000)
"""


@pytest.fixture
def default_ports() -> Iterator[None]:
    """Ray's default ports are taken, by somebody else or by us."""
    held = []
    for port in (6379, 8265, 10001, 52365):
        holder = socket.socket()
        try:
            holder.bind(("", port))
        except OSError:
            holder.close()
            continue
        holder.listen()
        held.append(holder)
    yield
    for holder in held:
        holder.close()


@dataclass
class Proxy:
    """A proxy that lets nothing through.

    Attributes:
        url: of the proxy.
        asked: what it was asked for.
    """

    url: str = ""
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    made = Proxy()

    class Refuse(BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            made.asked.append(self.rfile.readline(1000).decode(errors="replace"))
            self.wfile.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
            self.close_connection = True

    with ThreadingHTTPServer(("127.0.0.1", 0), Refuse) as server:
        made.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert urlopen_status(made.url) == 503
        made.asked.clear()
        yield made
        server.shutdown()


def urlopen_status(proxy: str) -> int:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": proxy}))
    try:
        return int(opener.open("http://example.invalid/", timeout=10).status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture
def other_ray(short_tmp: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER_RAY, str(short_tmp / "other")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "up\n"
    yield process
    process.terminate()
    process.wait(30)


def environment(short_tmp: Path, **more: str) -> dict[str, str]:
    """A home with a token of an earlier Ray, and traces of a Ray that is long gone."""
    home = short_tmp / "home"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("left-over")
    (short_tmp / "ray").mkdir()
    (short_tmp / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    return {**os.environ, "HOME": str(home), "RAY_TMPDIR": str(short_tmp), **more}


def launch(arguments: list[str], env: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(LAUNCHER), *arguments],
        env=env,
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=TIMEOUT_S,
    )


@pytest.mark.slow
def test_twice_in_a_row_beside_another_ray(
    tmp_path: Path, short_tmp: Path, default_ports: None, other_ray: subprocess.Popen[str]
) -> None:
    (tmp_path / "input.txt").write_text("hello")
    (tmp_path / "report.py").write_text(REPORT)
    env = environment(short_tmp, RAY_ADDRESS="127.0.0.1:1")
    others = psutil.Process(other_ray.pid).children(recursive=True)
    folders = set(short_tmp.iterdir())
    assert others

    for status in (0, 2):
        result = launch(["--num-cpus", "3", "--", "python", "report.py", str(status)], env, tmp_path)
        assert result.returncode == status, result.stdout
        lines = result.stdout.splitlines()
        assert f"python {sys.executable}" in lines
        assert "file hello" in lines
        assert f"launched from {tmp_path}" in lines
        assert "cpus 3" in lines  # the other has 1
        assert any(f"ray job submit --address {url}" in result.stdout for url in dashboards(lines))
        assert " INFO " not in result.stdout
        assert "Running entrypoint" not in result.stdout
        assert set(short_tmp.iterdir()) == folders  # ours is cleaned up

    assert all(process.is_running() for process in others)
    answer, _ = other_ray.communicate("go\n", timeout=240)
    assert answer == "42\n"
    assert [path.name for path in (short_tmp / "home" / ".ray").iterdir()] == ["auth_token"]
    assert (short_tmp / "ray" / "ray_current_cluster").read_text() == "127.0.0.1:1"


@pytest.mark.slow
@pytest.mark.core
def test_a_folder_with_large_files_in_it_behind_a_proxy(tmp_path: Path, short_tmp: Path, proxy: Proxy) -> None:
    """Ray uploads no more than 100 MiB, and what it says to itself is nothing for a proxy."""
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as large:
        large.truncate(150 * 2**20)
    (folder / "mine.py").write_text("def name() -> str:\n    return 'of mine'\n")
    (folder / "aiohttp.py").write_text("raise SystemExit('not that aiohttp')\n")
    (folder / "job.py").write_text(OF_THIS_FOLDER)
    names = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    env = environment(short_tmp, **dict.fromkeys(names, proxy.url))
    result = launch(["--num-cpus", "1", "--", "python", "job.py"], env, folder)
    assert result.returncode == 0, result.stdout
    assert f"here {folder} of mine" in result.stdout.splitlines()
    assert "Running entrypoint" not in result.stdout
    # Ray tells its makers that it does not tell them how it is used: that is nothing local.
    assert [line for line in proxy.asked if "usage-stats.ray.io" not in line] == []


def dashboards(lines: list[str]) -> list[str]:
    return [line.split()[3] for line in lines if line.startswith("[local ray] dashboard: ")]


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_interrupt_stops_the_job_and_all_it_left(times: int, tmp_path: Path, short_tmp: Path) -> None:
    (tmp_path / "job.py").write_text(ORPHAN)
    launcher = subprocess.Popen(
        [sys.executable, str(LAUNCHER), "--num-cpus", "1", "--", "python", "job.py"],
        env=environment(short_tmp),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert launcher.stdout
    orphan = 0
    for line in launcher.stdout:
        if line.startswith("orphan "):
            orphan = int(line.split()[1])
        if line == "ready\n":
            break
    assert psutil.pid_exists(orphan)
    family = psutil.Process(launcher.pid).children(recursive=True)

    launcher.send_signal(signal.SIGINT)
    assert "stopping the job" in launcher.stdout.readline()
    if times == 2:
        launcher.send_signal(signal.SIGINT)
    rest, _ = launcher.communicate(timeout=TIMEOUT_S)

    assert launcher.returncode == 130
    assert ("[local ray] stopped" in rest) == (times == 1)  # the second leaves no time for a farewell
    _, alive = psutil.wait_procs([*family, *with_pid(orphan)], timeout=5)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


def with_pid(pid: int) -> list[psutil.Process]:
    return [psutil.Process(pid)] if psutil.pid_exists(pid) else []


def test_ray_that_cannot_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()

    result = launch(["--", "true"], {**os.environ, "RAY_TMPDIR": str(deep)}, tmp_path)

    assert result.returncode == 1
    assert "Ray did not start. It said:" in result.stdout
    assert "AF_UNIX path length" in result.stdout
    assert list(deep.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "required: COMMAND"),
        (["--num-cpus", "0", "--", "true"], "--num-cpus must be at least 1, got 0"),
        (["--num-gpus", "-1", "--", "true"], "--num-gpus must not be negative, got -1"),
    ],
)
def test_wrong_arguments(arguments: list[str], says: str, tmp_path: Path) -> None:
    result = launch(arguments, dict(os.environ), tmp_path)

    assert result.returncode == 2
    assert says in result.stdout


def test_free_ports_prefers_but_does_not_insist(private_ray: ModuleType) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ports = private_ray.free_ports(3, preferred=[port])

    assert len(set(ports)) == 3
    assert port not in ports
    assert private_ray.free_ports(1, preferred=[port]) == [port]


def test_environment_is_our_own(private_ray: ModuleType) -> None:
    outer = {"PATH": "/usr/bin", "RAY_ADDRESS": "10.0.0.1:6379", "KEEP": "this"}

    env = private_ray.environment(outer, "/launch")

    assert "RAY_ADDRESS" not in env
    assert env["KEEP"] == "this"
    assert env["PATH"] == f"{Path(sys.executable).parent}:/usr/bin"
    assert env["MFT_RAY_LAUNCH_DIR"] == "/launch"
    assert env["RAY_USAGE_STATS_ENABLED"] == "0"
    assert env["RAY_AUTH_MODE"] == "token"
    assert env["RAY_AUTH_TOKEN"] != private_ray.environment(outer, "/launch")["RAY_AUTH_TOKEN"]


def test_environment_leaves_the_choice_of_authentication(private_ray: ModuleType) -> None:
    disabled = private_ray.environment({"RAY_AUTH_MODE": "disabled"}, "/launch")
    given = private_ray.environment({"RAY_AUTH_TOKEN": "mine"}, "/launch")

    assert "RAY_AUTH_TOKEN" not in disabled
    assert given["RAY_AUTH_TOKEN"] == "mine"
