"""A PostgreSQL server of a test's own, which can be stopped, killed and started again."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import URL, NullPool, create_engine

USER, PASSWORD = "masks", "hunter2-of-the-test"
_START_S = 60


class Server:
    """A server on a port of this machine, over a folder of its own, whose user has a password."""

    def __init__(self, programs: Path, home: Path) -> None:
        self._programs, self._home = programs, home
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (home / "password").write_text(PASSWORD)
        # The server refuses to run as root.
        self._as = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
        if self._as:
            for path in (home, home / "password"):
                shutil.chown(path, "postgres", "postgres")
        self._run("initdb", "-D", str(home / "data"), "-U", USER, "--auth=scram-sha-256", f"--pwfile={home}/password")

    @property
    def url(self) -> str:
        """The address of its database for `search.storage`, without the password."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        settings = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        self._run("pg_ctl", "start", "-w", "-D", str(self._home / "data"), "-o", settings, "-l", f"{self._home}/log")

    def stop(self, how: str = "fast") -> None:
        """Stop it.

        Args:
            how: ``fast`` ends connections in order; ``immediate`` is as if it had crashed.
        """
        self._run("pg_ctl", "stop", "-w", "-D", str(self._home / "data"), "-m", how)

    def says(self, query: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Return the rows that a query gives."""
        url = URL.create("postgresql+psycopg", USER, PASSWORD, "127.0.0.1", self.port, database)
        engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
        with engine.connect() as connection:
            answer = connection.exec_driver_sql(query)
            return [tuple(row) for row in answer] if answer.returns_rows else []

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._as, str(self._programs / program), *arguments]
        # What the server keeps open would be waited for.
        with (self._home / "said").open("w+") as said:
            done = subprocess.run(
                command, stdout=said, stderr=said, stdin=subprocess.DEVNULL, timeout=_START_S, cwd=self._home
            )
            said.seek(0)
            assert done.returncode == 0, said.read()


@contextmanager
def server() -> Iterator[Server]:
    """Yield a server that runs; the test is skipped where there is no PostgreSQL."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'mft_ray[postgresql]'")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if shutil.which("pg_ctl"):
        found.append(Path(str(shutil.which("pg_ctl"))).parent)
    if not found:
        pytest.skip("no PostgreSQL server is installed (Debian: postgresql)")
    if os.getuid() == 0:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("there is no user postgres, and the server refuses to run as root")
    home = Path(tempfile.mkdtemp(prefix="mft-ray-postgres-", dir="/tmp"))  # which its user can get to
    its = Server(found[-1], home)
    its.start()
    try:
        yield its
    finally:
        if (home / "data" / "postmaster.pid").exists():
            its.stop("immediate")
        shutil.rmtree(home, ignore_errors=True)
