"""What Ray and other libraries say while we work: out of sight, and where to find it when something has failed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import ray

from mft_ray.errors import UserError
from mft_ray.models.names import TRACEBACK
from mft_ray.runs.folder import RunFolder
from mft_ray.utils.console import chatter_in, log_warning
from mft_ray.utils.files import Signature, replacing, signature

# Of each log its end, and of all together; a worker's own output first, for that is what is looked for.
_MOST_OF_ONE, _MOST = 2 * 2**20, 50 * 2**20
_FIRST = ("worker-", "job-driver-", "python-core-worker-", "raylet", "gcs")
# The environment of workers stands in some logs, and a run folder is read by others than the logs are.
_SECRET = re.compile(r"token|secret|password|key", re.IGNORECASE)
_SHORTEST_SECRET = 8
# What says, in the environment, that a Ray is of this command's own: cluster/local.py's.
_LOCAL = "MFT_RAY_LOCAL_ID"


@contextmanager
def kept_logs(folder: RunFolder) -> Iterator[None]:
    """Keep Ray's logs in ``work/ray-logs``, and say so, if anything of a run fails meanwhile.

    On a Ray that others use too they stay where they are, which is said. What libraries print in this process, which
    is a command's, goes into ``work/library_output.txt``.

    Args:
        folder: folder of the run.
    """
    before = _failures(folder)
    private = not os.environ.get("RAY_ADDRESS") or bool(os.environ.get(_LOCAL))
    failed = True
    try:
        with chatter_in(folder.library_output):
            yield
        failed = False
    except (UserError, KeyboardInterrupt):
        failed = False
        raise
    finally:
        if failed or _failures(folder) - before:
            with suppress(OSError):  # a disk that is full must not hide why the run has failed
                _keep(folder, private)
            if folder.library_output.exists():
                log_warning(f"what libraries printed meanwhile is in {folder.library_output}")


def _failures(folder: RunFolder) -> set[tuple[Path, Signature | None]]:
    """Return what tells of failures, to be compared with itself: the clock of who wrote a file may be another one."""
    names = ("error.json", TRACEBACK, f"*.{TRACEBACK}")
    return {(path, signature(path)) for name in names for path in folder.root.rglob(name)}


def _keep(folder: RunFolder, private: bool) -> None:
    logs = _logs()
    if logs is None:
        return
    if not private:
        log_warning(
            f"something has failed: Ray's logs of it are in {logs} on the nodes of the cluster, as long as that is up"
        )
        return
    to = folder.work / "ray-logs"
    with replacing(to) as partial:
        whole = copy_logs(logs, partial)
    log_warning(
        f"something has failed: Ray's logs are kept in {to}"
        + ("" if whole else f", each at most {_MOST_OF_ONE >> 20} MB")
    )


def copy_logs(logs: Path, to: Path) -> bool:
    """Copy logs, of large ones the end, without what the environment holds of secrets.

    Args:
        logs: folder of Ray's logs.
        to: new folder.

    Returns:
        Whether all is there.
    """
    to.mkdir(parents=True)
    secrets = [
        value.encode()
        for name, value in os.environ.items()
        if _SECRET.search(name) and len(value) >= _SHORTEST_SECRET and not os.path.exists(value)
    ]
    files = [path for path in logs.rglob("*") if path.is_file() and not path.is_symlink()]
    left, whole = _MOST, True
    for path in sorted(files, key=_rank):
        size = path.stat().st_size
        most = min(_MOST_OF_ONE, left)
        whole = whole and size <= most
        if size == 0 or most == 0:
            continue
        with path.open("rb") as opened:
            opened.seek(max(0, size - most))
            content = opened.read(most)
        left -= len(content)
        for secret in secrets:
            content = content.replace(secret, b"***")
        copy = to / path.relative_to(logs)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content)
    return whole


def _rank(path: Path) -> tuple[int, str]:
    first = next((place for place, start in enumerate(_FIRST) if path.name.startswith(start)), len(_FIRST))
    return first, path.name


def _logs() -> Path | None:
    """Return where the Ray that this process is connected to keeps its logs on this node."""
    node = ray._private.worker.global_worker.node
    return None if node is None else Path(node.get_logs_dir_path())
