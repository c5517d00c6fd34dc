"""What the cluster has, and can grow to, for the trials of a search."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import ray
import yaml
from ray._private.state import state as cluster_state

from mft_ray.config import ScalingConfig
from mft_ray.errors import UserError
from mft_ray.workers.group import worker_resources


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
    now, later = _nodes_now(), _nodes_later(scaling)
    workers = max(sum(node.fits(bundle) for node in kinds) for kinds in (now, later))
    trials = workers / scaling.workers
    if trials < 1:
        asked = ", ".join(f"{need:g} {name}" for name, need in bundle.items())
        growth = f"can grow to {_describe(later)}" if later else "cannot grow, as far as is known"
        raise UserError(
            f"A trial asks for {scaling.workers} worker(s) with {asked} each, and this cluster has "
            f"{_describe(now)} and {growth}. Lower scaling.workers, scaling.cpus_per_worker or "
            "scaling.gpus_per_worker, use a larger cluster, or say in scaling.cluster_grows_to what it can become."
        )
    return int(min(trials, limit or math.inf, 10_000))


def _nodes_now() -> list[NodeType]:
    return [NodeType(dict(node["Resources"]), 1) for node in ray.nodes() if node["Alive"]]


def _nodes_later(scaling: ScalingConfig) -> list[NodeType]:
    """Return the node types of a cluster that autoscales; empty for one that does not."""
    if scaling.cluster_grows_to is not None:
        return [NodeType(scaling.cluster_grows_to, 1)]
    config: Any = cluster_state.get_cluster_config()
    if config is not None and config.node_group_configs:
        return [
            NodeType(dict(group.resources), math.inf if group.max_count < 0 else group.max_count)
            for group in config.node_group_configs
        ]
    file = _cluster_file()
    if file is None:
        return []
    kinds = (yaml.safe_load(file.read_text()) or {}).get("available_node_types", {})
    return [NodeType(kind.get("resources", {}), kind.get("max_workers", 0)) for kind in kinds.values()]


def _cluster_file() -> Path | None:
    """Return the file that this cluster's autoscaler reads, from its command line on the head, where drivers run."""
    ours = f"--gcs-address={ray.get_runtime_context().gcs_address}"
    option = "--autoscaling-config="
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # somebody else's, or gone
            command = process.cmdline()
            for argument in command if ours in command else []:
                file = Path(argument.removeprefix(option)).expanduser()
                if argument.startswith(option) and file.exists():
                    return file
    return None


def _describe(nodes: list[NodeType]) -> str:
    parts = [
        f"{node.count:g} x ({', '.join(f'{node.resources.get(name, 0):g} {name}' for name in ('CPU', 'GPU'))})"
        for node in nodes
    ]
    return " + ".join(parts) or "no nodes"
