"""Object stores of a test's own: moto's S3, an emulator of Google Cloud Storage, and a wire to either."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

BUCKET = "masks"
_START_S = 60


class Server:
    """A server on a port of this machine, which holds all in memory.

    Args:
        log: file for what it says.
        environment: settings of moto.
    """

    def __init__(self, log: Path, **environment: str) -> None:
        self.port = free_port()
        self._log, self._environment = log, environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to reach it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "key-of-the-test",
            "AWS_SECRET_ACCESS_KEY": "secret-of-the-test",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "no_proxy": "127.0.0.1,localhost",
        }

    def address(self, name: str) -> str:
        """Return the address of a run."""
        return f"s3://{BUCKET}/runs/{name}"

    def start(self) -> None:
        """Start it, wait until it answers, and have a bucket."""
        with self._log.open("ab") as log:
            environment = {**os.environ, **self._environment}
            self._process = subprocess.Popen(self.command, stdout=log, stderr=log, env=environment)
        deadline = time.monotonic() + _START_S
        while not self._answers():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.1)
        self.make_bucket()

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]

    def make_bucket(self) -> None:
        with urllib.request.urlopen(
            urllib.request.Request(f"{self.endpoint}/{BUCKET}", method="PUT"), timeout=_START_S
        ):
            pass

    def stop(self) -> None:
        """Kill it; it forgets all."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.endpoint}/moto-api/", timeout=5):
                return True
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False


class GoogleServer(Server):
    """The same as Google Cloud Storage has it."""

    def address(self, name: str) -> str:
        where = f"endpoint_override=127.0.0.1:{self.port}"
        return f"gs://{BUCKET}/runs/{name}?anonymous=true&{where}&scheme=http"

    @property
    def command(self) -> list[str]:
        program = str(Path(sys.executable).with_name("gcp-storage-emulator"))
        return [
            program,
            "start",
            "--host=127.0.0.1",
            f"--port={self.port}",
            "--in-memory",
            f"--default-bucket={BUCKET}",
        ]

    def make_bucket(self) -> None:
        """It has one."""


def free_port() -> int:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def server(kind: type[Server] = Server, **environment: str) -> Iterator[Server]:
    """Yield a server that runs; the test is skipped where it is not installed."""
    pytest.importorskip("moto.server", reason="moto is not installed: pip install 'moto[server]'")
    if kind is GoogleServer:
        pytest.importorskip("gcp_storage_emulator", reason="pip install gcp-storage-emulator")
    with tempfile.TemporaryDirectory() as folder:
        its = kind(Path(folder) / "log", **environment)
        its.start()
        try:
            yield its
        finally:
            its.stop()


class Wire:
    """A way to a server that can be cut: what comes to its own port goes on to the server's, and back.

    Args:
        port: port of the server.
    """

    def __init__(self, port: int) -> None:
        self._to, self.port = port, free_port()
        self._listening: socket.socket | None = None
        self._open: set[socket.socket] = set()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def mend(self) -> None:
        """Let through what comes."""
        self._listening = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listening,), daemon=True).start()

    def cut(self) -> None:
        """End all connections, and refuse new ones."""
        listening, self._listening = self._listening, None
        for each in (listening, *list(self._open)):
            if each is not None:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                near, _ = listening.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                near.close()
                continue
            self._open |= {near, far}
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while content := one.recv(2**16):
                other.sendall(content)
        for each in (one, other):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
            self._open.discard(each)
