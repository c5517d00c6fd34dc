"""What the page of a search shows of nodes and workers while it runs."""

from __future__ import annotations

from mft_ray.runs.live.cluster import cluster_now
from mft_ray.runs.live.nodes import NodeUse
from mft_ray.runs.live.snapshot import Live
from mft_ray.utils import formatting as units
from mft_ray.utils.json_types import JsonObject

_NODES = 40


def cluster(live: Live) -> JsonObject:
    """Return nodes and workers as Ray has them now; none where no search runs, or nothing new is known of them."""
    now = cluster_now(live.run.folder)
    if now is None:
        return {"nodes": []}
    nodes, age = now[0].nodes, now[1]
    cpus = _of(sum(node.cpus_used for node in nodes), sum(node.cpus for node in nodes))
    cards = sum(node.gpus for node in nodes)
    gpus = f" and {_of(sum(node.gpus_used for node in nodes), cards)} GPUs" if cards else ""
    counted = (_count(len(nodes), "node"), _count(sum(len(node.workers) for node in nodes), "worker"))
    return {
        "nodes": [_node(node) for node in nodes[:_NODES]],
        "more": _count(len(nodes) - _NODES, "more node") if len(nodes) > _NODES else "",
        "summed": f"{', '.join(counted)}, {cpus} CPUs{gpus} in use",
        "age": units.duration(age),
    }


def _node(node: NodeUse) -> tuple[str, ...]:
    cards = [
        f"{card.name}: {_of_size(card.used, card.total)}" + ("" if card.busy is None else f", {card.busy} % busy")
        for card in node.cards
    ]
    on_card = [each.card_memory for each in node.workers]
    held = [
        units.size(each.memory) + (f" and {units.size(size)} of a GPU's" if size else "")
        for each, size in zip(node.workers, on_card, strict=True)
    ]
    return (
        node.host,
        _of(node.cpus_used, node.cpus),
        _of(node.gpus_used, node.gpus),
        _of_size(node.memory_used, node.memory),
        "; ".join(cards) or units.NONE,
        "; ".join(held) or "no workers",
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _of(used: float, there: float) -> str:
    return f"{used:g} of {there:g}" if there else units.NONE


def _of_size(used: int | None, there: int | None) -> str:
    return units.NONE if used is None else f"{units.size(used)} of {units.size(there)}"
