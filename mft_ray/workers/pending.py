"""What trials wait for: worker groups that the cluster has no room for yet, and nodes that come and go."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import ray

from mft_ray.utils.formatting import duration

_LOOK_S = 5.0
_AGAIN_S = 60.0


class Waiting:
    """Says who waits for what and how long, and how the cluster changes. To be called often.

    Args:
        say: told each line.
        patience: seconds that a group may look for its place without a word; one that finds it at once is nothing to
            talk about.

    Attributes:
        now: what is waited for now, a line for each group that has lost patience.
    """

    def __init__(self, log: Callable[[str], None], patience: float = 15.0) -> None:
        self._say = log
        self._patience = patience
        self._looked = 0.0
        self._since: dict[str, float] = {}  # when a placement group was first seen without its place
        self._said: dict[str, float] = {}
        self._nodes: int | None = None
        self.now: list[str] = []

    def __call__(self) -> None:
        """Look at the cluster, unless that was done a moment ago."""
        now = time.monotonic()
        if now - self._looked < _LOOK_S:
            return
        self._looked = now
        self._look_at_nodes()
        pending = {
            name: group["bundles"]
            for name, group in ray.util.placement_group_table().items()
            if group["state"] in ("PENDING", "RESCHEDULING")
        }
        self._since = {name: self._since.get(name, now) for name in pending}
        self.now = []
        for name, bundles in pending.items():
            waited = now - self._since[name]
            if waited < self._patience:
                continue
            line = (
                f"a trial has waited {duration(waited)} for {_asked(list(bundles.values()))}; the cluster has "
                f"{self._nodes} node(s) and {_free()} free"
            )
            self.now.append(line)
            if now - self._said.get(name, -_AGAIN_S) >= _AGAIN_S:
                self._said[name] = now
                self._say(line)

    def _look_at_nodes(self) -> None:
        nodes = sum(node["Alive"] for node in ray.nodes())
        if self._nodes is not None and nodes != self._nodes:
            change = "has grown" if nodes > self._nodes else "has shrunk"
            self._say(f"the cluster {change} from {self._nodes} to {nodes} node(s)")
        self._nodes = nodes


def _asked(bundles: list[dict[str, float]]) -> str:
    same = Counter(_resources(bundle) for bundle in bundles)
    return " and ".join(f"{count} x ({bundle})" for bundle, count in same.items())


def _free() -> str:
    return _resources(ray.available_resources()) or "nothing"


def _resources(amounts: dict[str, float]) -> str:
    return ", ".join(f"{amounts[name]:g} {name}" for name in ("CPU", "GPU") if amounts.get(name))
