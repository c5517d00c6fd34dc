"""An S3 server of a test's own: moto's, over loopback, which can be killed and started again with what it holds."""

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
KEY, SECRET = "key-of-the-test", "secret-of-the-test"
_START_S = 60


class Server:
    """A server on a port of this machine, which forgets all when it is stopped, but not while it is paused.

    Args:
        log: file for what it says.
        environment: settings of moto.
    """

    def __init__(self, log: Path, **environment: str) -> None:
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
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
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "no_proxy": "127.0.0.1,localhost",
        }

    def start(self, bucket: str | None = BUCKET) -> None:
        """Start it, wait until it answers, and make a bucket."""
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        with self._log.open("ab") as log:
            environment = {**os.environ, **self._environment}
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        deadline = time.monotonic() + _START_S
        while not self._answers():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.1)
        if bucket:
            request = urllib.request.Request(f"{self.endpoint}/{bucket}", method="PUT")
            with urllib.request.urlopen(request, timeout=_START_S):
                pass

    def stop(self) -> None:
        """Kill it; it forgets all."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def requests(self) -> int:
        """How many it has answered."""
        return sum(" HTTP/1." in line for line in self._log.read_text().splitlines())

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.endpoint}/moto-api/", timeout=5):
                return True
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False


@contextmanager
def server(**environment: str) -> Iterator[Server]:
    """Yield a server that runs; the test is skipped where moto is not installed."""
    pytest.importorskip("moto.server", reason="moto is not installed: pip install 'moto[server]'")
    with tempfile.TemporaryDirectory() as folder:
        its = Server(Path(folder) / "log", **environment)
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
        self._to = port
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
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
