"""What Ray says of nodes and workers while a search runs: noted in its folder, so that a page need not ask Ray."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mft_ray.runs.folder import RunFolder
from mft_ray.runs.live.nodes import NodeUse, told_of_nodes
from mft_ray.runs.live.steering import at_work
from mft_ray.runs.records import Cluster
from mft_ray.utils.console import log_warning
from mft_ray.utils.files import Damaged

# It is noted every few seconds; what is older than this says nothing of now.
OLD_S = 60.0


@contextmanager
def cluster_noted(folder: RunFolder) -> Iterator[None]:
    """Context manager during which nodes and workers are noted in a run folder, in a thread of its own.

    Args:
        folder: run folder. The note goes at the end.
    """

    def note(nodes: list[NodeUse]) -> None:
        Cluster(time=time.time(), nodes=nodes).save(folder.cluster)

    def failed(error: Exception) -> None:
        said = " ".join(str(error).split()) or "no reason given"
        log_warning(f"the dashboard shows no nodes and workers any more ({type(error).__name__}: {said:.200})")

    try:
        with told_of_nodes(note, failed):
            yield
    finally:
        folder.cluster.unlink(missing_ok=True)


def cluster_now(root: Path) -> tuple[Cluster, float] | None:
    """Return what was noted last, and its age in seconds; None where nobody works on the run, or it is old.

    Args:
        root: run folder.
    """
    folder = RunFolder(root)
    if not folder.cluster.exists() or not at_work(folder):
        return None
    try:
        found = Cluster.load(folder.cluster)
    except (FileNotFoundError, Damaged):
        return None
    age = max(0.0, time.time() - found.time)  # another machine's clock may be ahead
    return None if age > OLD_S else (found, age)
