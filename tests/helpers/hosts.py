"""Hosts of a test's own: namespaces on one wire, each with an address, a name and temporary files, for a Ray in each.

As Debian and Ubuntu set hosts up, a host's name resolves to loopback. What is outside of them, on the same wire, is
the desk, where a user sits. All files but temporary ones are shared. Each host says of itself that it has been up for
another time, so that clocks which count from a start tell one host nothing of another.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import on_each_host
import psutil  # type: ignore[import-untyped]
import pytest
import relay
from namespaces import unshare
from on_each_host import Gate

_NET = "10.77.0"
_PORT = 6399
DASHBOARD = f"http://{_NET}.1:8265"
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
# The first process of all: the desk, and the wire. All that is started here ends with it.
_UPTIME_S = 100_000  # of the first host; the second's is twice that
_DESK = f"""
set -e
ip link set lo up
ip link add hub type bridge
ip addr add {_NET}.254/24 dev hub
ip link set hub up
touch "$1/desk"
sleep infinity
"""
# A host's first process, in namespaces of its own.
_HOST = """
set -e
hostname "$2"
printf '127.0.0.1 localhost\\n127.0.1.1 %s\\n' "$2" > "$1/$2/hosts"
mount --bind "$1/$2/hosts" /etc/hosts
mount --bind "$1/$2/ray" "$1/ray"
ip link set lo up
echo $$ > "$1/$2/pid"
exec sleep infinity
"""
_CABLE = 'ip link add name "$1" type veth peer name wire netns "$2"'
_PLUG = f"""
set -e
ip link set dev "$1" master hub up
nsenter --target "$2" --net ip addr add "{_NET}.$3/24" dev wire
nsenter --target "$2" --net ip link set wire up
"""
# What a wait may take: all that is waited for here is progress, and a machine may be slow. It ends as soon as it can.
LONG_S = 600


@dataclass
class Host:
    """A host.

    Attributes:
        name: its name.
        address: its address on the wire.
        folder: its files, of which ``ray`` is what it sees as Ray's temporary folder.
        enter: the command that runs another one on it.
        net: its network, as /proc names it.
        hosts: all hosts.
    """

    name: str
    address: str
    folder: Path
    enter: list[str]
    net: str
    hosts: Hosts
    starts: int = 0  # of Ray

    def start(self, command: Sequence[str], log: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start a command whose output goes to a file of the shared folder, which is its current one."""
        with (self.hosts.folder / log).open("ab") as file:
            return subprocess.Popen(
                [*self.enter, *command],
                env=self.hosts.env | environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def run(self, command: Sequence[str], log: str, timeout_s: float = LONG_S, **environment: str) -> int:
        """Run a command; return its status."""
        process = self.start(command, log, **environment)
        try:
            return process.wait(timeout_s)
        finally:
            process.kill()

    def start_ray(self, cpus: int, **environment: str) -> None:
        """Start Ray: the head's on the first host, and one that joins that on any other. It stays in the foreground."""
        head = self.address == f"{_NET}.1"
        where = (
            ["--head", f"--port={_PORT}", "--dashboard-host=0.0.0.0", f"--temp-dir={self.hosts.folder / 'ray'}"]
            if head
            else [f"--address={_NET}.1:{_PORT}"]
        )
        options = [f"--node-ip-address={self.address}", f"--num-cpus={cpus}", "--object-store-memory=100000000"]
        self.starts += 1
        log = f"{self.name}-{self.starts}.log"
        ray = self.start([*RAY, "start", "--block", *where, *options, "--disable-usage-stats"], log, **environment)

        def started() -> bool:
            said = (self.hosts.folder / log).read_text()
            assert ray.poll() is None, said
            return "Ray runtime started" in said

        wait(started, f"Ray on {self.name}")

    def wrong_clock(self, ahead_s: float) -> dict[str, str]:
        """Return an environment that sets the clock of Python's processes; what is written in C goes on with ours."""
        return {on_each_host.AHEAD_S: str(ahead_s)}

    def end_politely(self) -> None:
        """Ask its Ray to end, as Kubernetes asks a pod."""
        [ray] = [process for process in self.processes() if "--block" in process.cmdline() and _is_python(process)]
        ray.terminate()

    def announce_end(self, seconds: int) -> None:
        """Tell Ray that the host will be taken away, as who watches a cloud's notices does."""
        why = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        command = [*RAY, "drain-node", "--node-id", self._node_id(), *why, "--deadline-remaining-seconds", str(seconds)]
        assert self.run(command, "drain.log") == 0, (self.hosts.folder / "drain.log").read_text()

    def _node_id(self) -> str:
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                for argument in process.cmdline() if process.name() == "raylet" else []:
                    if argument.startswith("--node_id="):
                        return str(argument.partition("=")[2])
        raise AssertionError(f"no Ray on {self.name}")

    def has_ray(self) -> bool:
        """Whether a raylet is on it."""
        return self._titled("raylet")

    def works(self) -> bool:
        """Whether a worker of a trial is on it."""
        return self._titled("ray::RayTrainWorker")

    def _titled(self, title: str) -> bool:
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if process.name() == title or " ".join(process.cmdline()).startswith(title):
                    return process.status() != psutil.STATUS_ZOMBIE
        return False

    def processes(self) -> list[psutil.Process]:
        """All of its processes but those that keep it there."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):  # gone
                if os.readlink(f"/proc/{process.pid}/ns/net") == self.net and process.name() not in (
                    "sleep",
                    "unshare",
                ):
                    found.append(process)
        return found

    def kill(self) -> None:
        """Kill all of its processes, as when its power fails; another Ray can be started there."""
        while running := [each for each in self.processes() if each.status() != psutil.STATUS_ZOMBIE]:
            for process in running:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(running, timeout=1)

    def cut_off(self) -> None:
        """Pull its plug out of the wire."""
        self._set("down")

    def plug_in(self) -> None:
        """Put the plug back."""
        self._set("up")

    def worsen(self, delay_s: float, loss: float) -> None:
        """Have what it sends and gets take so long from now on, and a part of the frames lost; it must be relayed."""
        wire = relay.Wire(delay_s, loss)
        relay.replace(self.folder / relay.SETTINGS, json.dumps(asdict(wire)))
        wait(lambda: self.frames().wire == wire, f"a worse wire of {self.name}")

    def frames(self) -> relay.Frames:
        """Return how many there were on its wire since that was last changed."""
        return relay.Frames.load(self.folder / relay.COUNTS)

    def _set(self, state: str) -> None:
        subprocess.run([*self.hosts.desk, "ip", "link", "set", "dev", self.name, state], check=True)


@dataclass
class Hosts:
    """What is on the wire.

    Attributes:
        folder: a folder that all share.
        desk: the command that runs another one at the desk.
        env: environment of all commands.
        gate: where trials of a search wait, if they do.
    """

    folder: Path
    desk: list[str]
    env: dict[str, str]
    gate: Gate
    by_name: dict[str, Host] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Host:
        return self.by_name[name]

    def add(self, name: str, relayed: bool) -> Host:
        """Add a host; the first one is the head. What it sends and gets may be relayed, see `Host.worsen`."""
        number = len(self.by_name) + 1
        folder = self.folder / name
        (folder / "ray").mkdir(parents=True)
        up = str(number * _UPTIME_S)
        new = ["unshare", "--net", "--mount", "--uts", "--propagation", "private"]
        new += ["--time", "--monotonic", up, "--boottime", up, "--fork"]
        subprocess.Popen(
            [*self.desk, *new, "bash", "-c", _HOST, "host", str(self.folder), name], stdin=subprocess.DEVNULL
        )
        pid = folder / "pid"
        wait(lambda: pid.exists() and pid.read_text().endswith("\n"), f"the host {name}")
        inner = pid.read_text().strip()
        if relayed:
            self._relay(name, inner, folder)
        else:
            subprocess.run([*self.desk, "bash", "-c", _CABLE, "cable", name, inner], check=True)
        subprocess.run([*self.desk, "bash", "-c", _PLUG, "plug", name, inner, str(number)], check=True)
        there = ["nsenter", "--target", inner, "--net", "--mount", "--uts", "--time"]
        enter = [*self.desk, *there, "env", "-C", str(self.folder)]
        net = subprocess.check_output([*enter, "readlink", "/proc/self/ns/net"], text=True).strip()
        self.by_name[name] = Host(name, f"{_NET}.{number}", folder, enter, net, self)
        return self.by_name[name]

    def _relay(self, name: str, inner: str, folder: Path) -> None:
        with (self.folder / f"relay-{name}.log").open("ab") as said:
            command = [*self.desk, sys.executable, relay.__file__, name, inner, str(folder)]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT)

        def there() -> bool:
            assert process.poll() is None, (self.folder / f"relay-{name}.log").read_text()
            return (folder / relay.COUNTS).exists()

        wait(there, f"the wire of {name}")

    def submit(self, command: Sequence[str], log: str) -> subprocess.Popen[bytes]:
        """Submit a job from the desk to the head; what it says goes to a file of the shared folder."""
        job = ["job", "submit", "--address", DASHBOARD, "--", "env", "-C", str(self.folder), *command]
        with (self.folder / log).open("ab") as file:
            return subprocess.Popen(
                [*self.desk, *RAY, *job], env=self.env, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )


@contextlib.contextmanager
def hosts(
    *names: str, hold_after: int | None = None, relayed: Sequence[str] = (), **environment: str
) -> Iterator[Hosts]:
    """Have hosts on one wire, the head first.

    Args:
        names: of the hosts.
        hold_after: as of `Gate.set_up`.
        relayed: hosts whose wire may become worse. Where it cannot, the test is skipped.
        environment: more of it, for all commands.
    """
    folder = Path(tempfile.mkdtemp(prefix="", dir="/tmp"))  # short, for Ray's sockets
    (folder / "ray").mkdir()
    command = unshare()
    if relayed and not os.access(relay.TUN, os.W_OK):
        pytest.skip(f"this machine makes no network devices for programs ({relay.TUN})")
    foreign = ("RAY_", "GLOO_", "NCCL_", "MFT_RAY_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    env |= {"RAY_TMPDIR": str(folder), "RAY_ADDRESS": f"{_NET}.1:{_PORT}", "RAY_AUTH_MODE": "disabled"}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **environment}
    env["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), env.get("PATH", os.defpath)])
    gate = Gate(folder)
    env = gate.set_up(env, hold_after)
    desk = subprocess.Popen(
        [*command, "bash", "-c", _DESK, "desk", str(folder)],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait(lambda: (folder / "desk").exists(), "the desk")
        [first] = psutil.Process(desk.pid).children()
        user = ["--user", "--preserve-credentials"] if "--map-root-user" in command else []
        enter = ["nsenter", "--target", str(first.pid), *user, "--mount", "--net", "--pid"]
        found = Hosts(folder, enter, env, gate)
        for name in names:
            found.add(name, name in relayed)
        yield found
    finally:
        os.killpg(desk.pid, signal.SIGKILL)
        desk.wait()
        for path in sorted(folder.glob("*.log")):
            print(f"--- {path.name}\n{path.read_text(errors='replace')[-20_000:]}")
        shutil.rmtree(folder, ignore_errors=True)


def _is_python(process: psutil.Process) -> bool:
    return Path(process.cmdline()[0]).name.startswith("python")


def wait(done: Callable[[], object], what: str, seconds: float = LONG_S) -> None:
    """Wait for something to be true; fails with its name where it is not in time."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"no sign of {what}"
        time.sleep(0.1)
