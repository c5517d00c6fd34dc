"""What the cluster has, and can grow to, for the trials of a search."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.state import state as cluster_state

from mft_ray.config import ScalingConfig
from mft_ray.errors import UserError
from mft_ray.training.launch import worker_resources


@dataclass(frozen=True)
class NodeType:
    """A kind of node: what one has, and how many there are or may come."""

    resources: dict[str, float]
    count: float

    def fits(self, bundle: dict[str, float]) -> float:
        """Return how many workers all nodes of this kind can hold."""
        each = min(math.floor(self.resources.get(name, 0) / need + 1e-9) for name, need in bundle.items())
        return each * self.count if each else 0


def concurrent_trials(scaling: ScalingConfig, limit: int | None = None) -> int:
    """Return how many trials' worker groups fit the cluster at once, grown as far as it can.

    Drivers of trials hold nothing, so that this many can never starve each other of workers.

    Args:
        scaling: what one trial asks for.
        limit: at most so many.

    Raises:
        UserError: not even one fits, now or after growing.
    """
    bundle = worker_resources(scaling)
    now, later = _nodes_now(), _nodes_later()
    workers = max(sum(node.fits(bundle) for node in kinds) for kinds in (now, later))
    trials = workers / scaling.workers
    if trials < 1:
        asked = ", ".join(f"{need:g} {name}" for name, need in bundle.items())
        raise UserError(
            f"A trial asks for {scaling.workers} worker(s) with {asked} each, and this cluster has "
            f"{_describe(now)}{f' and can grow to {_describe(later)}' if later else ' and cannot grow'}. Lower "
            "scaling.workers, scaling.cpus_per_worker or scaling.gpus_per_worker, or use a larger cluster."
        )
    return int(min(trials, limit or math.inf, 10_000))


def _nodes_now() -> list[NodeType]:
    return [NodeType(dict(node["Resources"]), 1) for node in ray.nodes() if node["Alive"]]


def _nodes_later() -> list[NodeType]:
    """Return the node types of an autoscaling cluster, as its autoscaler has told the cluster."""
    config: Any = cluster_state.get_cluster_config()
    if config is None:
        return []
    return [
        NodeType(dict(group.resources), math.inf if group.max_count < 0 else group.max_count)
        for group in config.node_group_configs
    ]


def _describe(nodes: list[NodeType]) -> str:
    parts = [
        f"{node.count:g} x ({', '.join(f'{node.resources.get(name, 0):g} {name}' for name in ('CPU', 'GPU'))})"
        for node in nodes
    ]
    return " + ".join(parts) or "no nodes"
