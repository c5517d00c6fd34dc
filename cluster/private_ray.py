"""A Ray of this process's own: started beside any other on the machine, and gone when it is stopped."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # DeepSpeed brings it

from mft_ray.utils.proxies import keep_local

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0
PR_SET_PDEATHSIG = 1
RAY = (sys.executable, "-P", "-m", "ray.scripts.scripts")  # -P: no file of the folder we are in is taken for a module

# In the environment of all that we start, and of nothing else.
MARK = "MFT_RAY_LOCAL_ID"
# These would lead the job, or our own calls, to somebody else's Ray.
FOREIGN = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_JOB_HEADERS", "RAY_GCS_SERVER_PORT")


class StartError(Exception):
    """Ray or the job could not be started; the message says why."""


@dataclass(frozen=True)
class PrivateRay:
    """A Ray that this process started."""

    process: subprocess.Popen[bytes]
    folder: Path
    dashboard: str

    @property
    def logs(self) -> Path:
        """Where Ray keeps its own logs."""
        return self.folder / "ray" / "session_latest" / "logs"


def environment(outer: Mapping[str, str], launch_dir: str) -> dict[str, str]:
    """The environment of the Ray, of the job through it, and of this process as their client."""
    env = {name: value for name, value in outer.items() if name not in FOREIGN}
    # Ray listens on every network interface, and who may talk to it may run anything as this user. A token
    # of this run's own, in the environment only, also keeps a ~/.ray/auth_token of an earlier Ray out of it.
    if env.setdefault("RAY_AUTH_MODE", "token").lower() == "token":
        env.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16))
    keep_local(env)
    env["RAY_USAGE_STATS_ENABLED"] = "0"
    env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"
    # Longer than Ray's 3 s, so that an interrupted job can finish writing a checkpoint.
    env.setdefault("RAY_JOB_STOP_WAIT_TIME_S", "10")
    # A trial is several processes that mostly wait; Ray warns of 4 times this many on the screen.
    env.setdefault("RAY_worker_maximum_startup_concurrency", "8")
    # `python` in the job is the python that runs this script.
    env["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), env.get("PATH", os.defpath)])
    env["MFT_RAY_LAUNCH_DIR"] = launch_dir
    env[MARK] = secrets.token_hex(8)
    return env


def start(options: Sequence[str], env: Mapping[str, str]) -> PrivateRay:
    """Start a head node of our own and wait until it takes jobs.

    Args:
        options: more options of ``ray start``.
        env: from :func:`environment`.

    Raises:
        StartError: with the end of what Ray said.
    """
    try:
        return _start(options, env, preferred=[8265])
    except StartError:
        # Another program may have taken a port between our look and Ray's use of it.
        return _start(options, env, preferred=[])


def stop(ray: PrivateRay) -> None:
    """Stop the Ray and whatever it left running; returns when all of it is gone."""
    before = _family(ray.process.pid)
    ray.process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        ray.process.wait(STOP_TIMEOUT_S)
    _, alive = psutil.wait_procs(before, timeout=3)
    left = set(alive) | _family(ray.process.pid)
    _kill(left)
    psutil.wait_procs(left, timeout=5)


def kill_everything() -> None:
    """Kill every process that we started, at once."""
    _kill(_family())


def free_ports(count: int, preferred: Sequence[int] = ()) -> list[int]:
    """Ports that nobody listens on, the preferred ones first."""
    ports = []
    with contextlib.ExitStack() as stack:
        for wanted in [*preferred, *[0] * count]:
            holder = stack.enter_context(socket.socket())
            # A connection that was closed a moment ago does not make a port taken; a listener does.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                holder.bind(("", wanted))
                holder.listen()
                ports.append(holder.getsockname()[1])
    return ports[:count]


def _start(options: Sequence[str], env: Mapping[str, str], preferred: Sequence[int]) -> PrivateRay:
    # Socket paths must stay below 108 characters, so a long TMPDIR would not do.
    folder = Path(tempfile.mkdtemp(prefix="mft-ray-", dir=env.get("RAY_TMPDIR", "/tmp")))
    dashboard, client = free_ports(2, preferred)
    output = folder / "ray_start.log"
    with output.open("wb") as sink:
        process = subprocess.Popen(
            [*_start_command(dashboard, client), *options],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            cwd=folder,  # where no file is called like one of Ray's modules
            # All processes of this Ray inherit where its address is. In the usual place there may be that of another
            # one, and Ray Train, which asks the State API there, then takes 12 seconds to end a worker group.
            # What they leave in temporary files goes with the folder.
            env={**env, "RAY_TMPDIR": str(folder), "TMPDIR": env.get("TMPDIR", str(folder))},
            start_new_session=True,  # Ctrl-C in the terminal is for us to pass on, in order.
            preexec_fn=_die_with_parent,
        )
    ray = PrivateRay(process, folder, f"http://127.0.0.1:{dashboard}")
    try:
        # Ray writes this file when every part of it is up. It is also what leads the job to this Ray and
        # not to another one on the machine.
        _wait_for_file(folder / "ray" / "ray_current_cluster", process)
    except BaseException as error:
        stop(ray)
        said = output.read_text(errors="replace").strip().splitlines()[-15:]
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, StartError):
            raise StartError("\n".join([str(error), *said])) from None
        raise
    return ray


def _start_command(dashboard: int, client: int) -> list[str]:
    """``ray start`` with every port ours; 0 lets the part itself find one.

    Not ``ray.init``, which cannot be told them all: a second Ray on a machine finds port 52365 taken, and
    then has no agent that accepts jobs.
    """
    ports = {
        "port": 0,
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": 0,
        "dashboard-agent-grpc-port": 0,
        "ray-client-server-port": client,
        "min-worker-port": 0,
        "max-worker-port": 0,
    }
    command = [*RAY, "start", "--head", "--block", "--include-dashboard=true", "--disable-usage-stats"]
    return [*command, *(f"--{name}={port}" for name, port in ports.items())]


def _wait_for_file(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not path.exists():
        if process.poll() is not None:
            raise StartError("Ray did not start. It said:")
        if time.monotonic() > deadline:
            raise StartError(f"Ray did not start within {START_TIMEOUT_S:.0f} s. It said:")
        time.sleep(0.1)


def _family(root: int | None = None) -> set[psutil.Process]:
    """Every process that comes from one of ours, or from this one, also those whose own parent has died meanwhile."""
    family: set[psutil.Process] = set()
    with contextlib.suppress(psutil.NoSuchProcess):
        family = set(psutil.Process(root).children(recursive=True))
    mark = os.environ.get(MARK)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # somebody else's, or gone
            if mark and process.pid != os.getpid() and process.environ().get(MARK) == mark:
                family.add(process)
    return family


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _die_with_parent() -> None:
    """Even when we are killed outright, our Ray does not stay behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
