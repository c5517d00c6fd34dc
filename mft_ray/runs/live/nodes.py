"""What Ray says of its nodes, their memory and cards, and of the workers on them, as often as the nodes report it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from mft_ray.utils.json_types import JsonObject

_EVERY_S = 5.0  # as often as nodes report
_PAUSE_S = 1.0  # where Ray's head does not answer
_END_S = 3.0
_MEGABYTE = 2**20
_TRAINS = "RayTrainWorker"  # in the name of a process that trains or scores


@dataclass(frozen=True)
class CardUse:
    """A GPU as it is used, by all processes.

    Attributes:
        name: name of the model.
        used: bytes of its memory in use.
        total: bytes of its memory.
        busy: part of the time that it computes, in percent; None where that is not known.
    """

    name: str
    used: int
    total: int
    busy: int | None = None


@dataclass(frozen=True)
class WorkerUse:
    """A process that trains or scores.

    Attributes:
        pid: number of the process on its node.
        memory: bytes of the node's memory that it occupies.
        card_memory: bytes of its GPU's; None without one, or where the driver does not say.
    """

    pid: int
    memory: int
    card_memory: int | None = None


@dataclass(frozen=True)
class NodeUse:
    """A node that is up.

    Attributes:
        host: name of the host.
        cpus: CPUs that Ray counts there.
        cpus_used: those of them that are given to somebody.
        gpus: GPUs that Ray counts there.
        gpus_used: those of them that are given to somebody.
        memory: bytes of memory; None where the node has not reported yet, which is then so for all below.
        memory_used: bytes of it in use, by all processes.
        cards: its GPUs.
        workers: those of any run on this Ray.
    """

    host: str
    cpus: float
    cpus_used: float
    gpus: float
    gpus_used: float
    memory: int | None = None
    memory_used: int | None = None
    cards: tuple[CardUse, ...] = ()
    workers: tuple[WorkerUse, ...] = ()


Tell = Callable[[list[NodeUse]], object]


@contextmanager
def told_of_nodes(tell: Tell, failed: Callable[[Exception], object]) -> Iterator[None]:
    """Context manager during which a thread listens to what nodes report to Ray, and passes it on every few seconds.

    Nodes report it in any case, for Ray's own dashboard, whether that is up or not. This process must be connected.

    Args:
        tell: told of all nodes that are up.
        failed: told why nothing more comes, if that is so.
    """
    loop, over = asyncio.new_event_loop(), asyncio.Event()

    def listen() -> None:
        try:
            loop.run_until_complete(_follow(over, tell))
        except Exception as error:  # whatever happens to it, what it is told beside goes on
            failed(error)
        finally:
            loop.close()

    thread = threading.Thread(target=listen, name="nodes", daemon=True)
    thread.start()
    try:
        yield
    finally:
        with suppress(RuntimeError):  # it has ended by itself
            loop.call_soon_threadsafe(over.set)
        thread.join(_END_S)


async def _follow(over: asyncio.Event, tell: Tell) -> None:
    # Imported late: who only reads what was told before needs no Ray.
    import ray
    from ray._private.gcs_pubsub import GcsAioResourceUsageSubscriber
    from ray._private.gcs_utils import create_gcs_channel

    channel = create_gcs_channel(ray.get_runtime_context().gcs_address, aio=True)
    subscriber = GcsAioResourceUsageSubscriber(channel=channel)
    clock, due = asyncio.get_running_loop().time, 0.0
    ended, heard = asyncio.create_task(over.wait()), None
    reports: dict[str, str] = {}
    try:
        await subscriber.subscribe()
        while not over.is_set():
            heard = heard or asyncio.create_task(subscriber.poll())
            await asyncio.wait({heard, ended}, timeout=_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
            if heard.done():
                (node, report), heard = heard.result(), None
                if report is None:
                    await asyncio.sleep(_PAUSE_S)
                else:
                    reports[node.rpartition(":")[2]] = report
            if clock() >= due and not over.is_set():
                due = clock() + _EVERY_S / 2
                tell(nodes_now(reports))
    finally:
        with suppress(Exception):
            await asyncio.wait_for(subscriber.close(), _PAUSE_S)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for each in others:
            each.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await channel.close()


def nodes_now(reports: Mapping[str, str]) -> list[NodeUse]:
    """Return the nodes that are up.

    Args:
        reports: the last report of each node, as JSON, by its id; of some there may be none yet.
    """
    import ray
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    found = []
    for node in ray.nodes():
        if node["Alive"]:
            name, has = node["NodeID"], node["Resources"]
            left = free.get(name, has)
            counts = [(has.get(kind, 0.0), has.get(kind, 0.0) - left.get(kind, 0.0)) for kind in ("CPU", "GPU")]
            host = node["NodeManagerHostname"]
            found.append(node_use(host, counts[0], counts[1], json.loads(reports.get(name, "{}"))))
    return sorted(found, key=lambda each: each.host)


def node_use(host: str, cpus: tuple[float, float], gpus: tuple[float, float], report: JsonObject) -> NodeUse:
    """Return a node with what it reports.

    Args:
        host: name of the host.
        cpus: CPUs that there are, and that are given to somebody.
        gpus: GPUs likewise.
        report: as ``ray.dashboard.modules.reporter.reporter_models.StatsPayload`` has it; empty where there is none.
    """
    total, _, _, used = report.get("mem") or (None,) * 4
    cards = tuple(
        CardUse(
            card["name"], card["memoryUsed"] * _MEGABYTE, card["memoryTotal"] * _MEGABYTE, card.get("utilizationGpu")
        )
        for card in report.get("gpus") or ()
    )
    workers = tuple(_worker(process) for process in report.get("workers") or () if _trains(process))
    return NodeUse(host, *cpus, *gpus, total, used, cards, workers)


def _trains(process: Mapping[str, Any]) -> bool:
    return any(_TRAINS in part for part in (process.get("cmdline") or ())[:1])


def _worker(process: Mapping[str, Any]) -> WorkerUse:
    on_card = process.get("gpuMemoryUsage")
    memory = int((process.get("memoryInfo") or {}).get("rss", 0))
    return WorkerUse(process["pid"], memory, on_card * _MEGABYTE if on_card else None)
