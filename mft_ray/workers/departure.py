"""Nodes that go away and have said so: which they are, and how all workers of a group leave a job at the same step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import ray
from ray._private.state import state as cluster_state

# How far apart workers agree whether to leave, at about: a word between them at each step would cost small models time.
_AGREE_S = 1.0
_MOST_STEPS = 1000


def departing(nodes: Iterable[str]) -> str | None:
    """Return in a few words which of some nodes are going away, as Ray has been told; None if none of them is.

    Args:
        nodes: their ids.
    """
    announced = cluster_state.get_draining_nodes()
    going = [node for node in nodes if node in announced]
    if not going:
        return None
    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    return f"{', '.join(sorted(addresses.get(node, node) for node in going))} is going away, as was announced"


class Line:
    """A worker's line to its queue: signs of life go there, and what comes back is which job it is to leave.

    Args:
        queue: handle of a `JobQueue`.
        rank: number of the worker.
    """

    def __init__(self, queue: Any, rank: int) -> None:
        self._queue, self._rank = queue, rank
        self._answer: Any = None
        self._to_leave: int | None = None

    def tell(self, doing: str, limit: float | None) -> None:
        """Give a sign of life; arguments as of `mft_ray.training.heartbeat.Tell`."""
        self._answer = self._queue.alive.remote(self._rank, doing, limit)

    def to_leave(self, number: int) -> bool:
        """Say whether the last answer was to leave a job.

        Args:
            number: of the job.
        """
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            self._to_leave, self._answer = ray.get(self._answer), None
        return self._to_leave == number


class Departure:
    """Says after each step of a job whether to leave it, alike on all workers.

    They ask each other about once a second, at the same steps: how many are taken in between follows from what the
    slowest of them said the last time. Workers know at different steps that they are to leave, and one that left by
    itself would leave the others waiting.

    Args:
        asked: whether this worker is to leave.
        device: where its tensors are.
    """

    def __init__(self, asked: Callable[[], bool], device: Any) -> None:
        self._asked, self._device = asked, device
        self._taken, self._apart, self._since = 0, 1, time.monotonic()

    def __call__(self) -> bool:
        """Count a step; say whether to leave."""
        self._taken += 1
        if self._taken < self._apart:
            return False
        import torch
        import torch.distributed as dist

        now = time.monotonic()
        said = torch.tensor([float(self._asked()), (now - self._since) / self._taken], device=self._device)
        dist.all_reduce(said, op=dist.ReduceOp.MAX)
        leave, seconds = said.tolist()
        self._taken, self._since = 0, now
        self._apart = max(1, min(_MOST_STEPS, int(_AGREE_S / max(seconds, 1e-6))))
        return bool(leave)
