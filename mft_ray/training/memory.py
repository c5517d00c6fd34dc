"""Memory of a worker: the most that it has held at once, and how much it may still take."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch

from mft_ray.config import ScalingConfig

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_VMSTAT = Path("/proc/vmstat")
_CGROUPS, _MINE = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# Of a node's memory: Ray kills workers where 95% of it is in use.
LEFT_ALONE = 0.1
# Of what is free: an estimate is one, and allocators leave gaps.
USABLE = 0.8


def begin(device: torch.device) -> None:
    """Forget what was held before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # where that is not allowed, the peak is of the process's whole life
        _RESET.write_text("5")


def peak(device: torch.device) -> float:
    """Return the bytes held at the peak: of the GPU's memory, or, on a CPU, of the process's."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    lines = _STATUS.read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def available(device: torch.device, scaling: ScalingConfig) -> float:
    """Return the bytes that this worker may take beside what it holds already, with some caution.

    A GPU's free memory is shared by the workers that have a part of it. A node's is shared by as many workers as it
    has places for: other groups, of other trials, may be at work there, or come.

    Args:
        device: device of this worker.
        scaling: what a worker reserves.
    """
    if device.type == "cuda":
        unused, _ = torch.cuda.mem_get_info(device)
        mine = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        sharing = max(1, math.floor(1 / (scaling.gpus_per_worker or 1) + 1e-9))
        return USABLE * (unused / sharing + mine)
    total, free = node_memory()
    group, places = neighbours(scaling)
    resident = float(psutil.Process().memory_info().rss)
    return share_of_node(total, free, resident, group, places)


def share_of_node(total: float, free: float, resident: float, group: int, places: int) -> float:
    """Return the bytes that one of several workers on a node may take beside what it holds.

    Args:
        total: bytes of the node.
        free: bytes that nobody holds.
        resident: bytes that the worker holds.
        group: workers of its own group there.
        places: workers of any group that the node can hold; others may be about to take theirs.
    """
    most = max(group, places)
    fair = (1 - LEFT_ALONE) * total / most - resident
    return USABLE * max(0.0, min(fair, (free - LEFT_ALONE * total) / most))


def neighbours(scaling: ScalingConfig) -> tuple[int, int]:
    """Return how many workers of this group are on this node, and how many of any group it has places for."""
    import ray.train  # here, so that memory can be measured where there is no Ray

    group = int(ray.train.get_context().get_local_world_size())
    here = ray.get_runtime_context().get_node_id()
    cpus = next((node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["NodeID"] == here), 0.0)
    return group, max(group, math.floor(cpus / scaling.cpus_per_worker + 1e-9))


def node_memory() -> tuple[float, float]:
    """Return the bytes that this node, or the container that this process is in, has in all and free."""
    memory = psutil.virtual_memory()
    total, free = float(memory.total), float(memory.available)
    for limit, held in _limits(_CGROUPS, _MINE):
        if limit < total:
            total = limit
        free = min(free, max(0.0, limit - held))
    return total, free


def _limits(cgroups: Path, mine: Path) -> Iterator[tuple[float, float]]:
    """Yield the limit of each control group that this process is in, and what the group holds beside file caches."""
    with suppress(OSError):
        for folder, version in _folders(cgroups, mine):
            if (found := _limit(folder, *_FILES[version])) is not None:
                yield found


_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}
_PEAKS = {1: ("memory.max_usage_in_bytes", "memory.limit_in_bytes"), 2: ("memory.peak", "memory.max")}


def _folders(cgroups: Path, mine: Path) -> Iterator[tuple[Path, int]]:
    """Yield the folder of each control group that this process is in, and of which version of them that is."""
    for line in mine.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, version = cgroups, 2
        elif "memory" in controllers.split(","):
            root, version = cgroups / "memory", 1
        else:
            continue
        folder = root / path.lstrip("/")
        # A group is bound by those around it. Inside a container its path may be of the world outside.
        yield from ((each, version) for each in (folder, *folder.parents) if each.is_relative_to(root))


def most_used(cgroups: Path = _CGROUPS, mine: Path = _MINE) -> tuple[float, float] | None:
    """Return the bytes in use at the most, and the limit, of the control group here that came nearest to its limit.

    Args:
        cgroups: where the kernel shows control groups.
        mine: file that says which this process is in.

    Returns:
        None where none has a limit, or the kernel does not say.
    """
    found = []
    with suppress(OSError):
        for folder, version in _folders(cgroups, mine):
            with suppress(OSError, ValueError):  # none there, or no limit: "max"
                peak, limit = (float((folder / name).read_text()) for name in _PEAKS[version])
                if limit < psutil.virtual_memory().total:
                    found.append((peak, limit))
    return max(found, key=lambda group: group[0] / group[1], default=None)


def _limit(folder: Path, limit: str, held: str, caches: str) -> tuple[float, float] | None:
    try:
        most = float((folder / limit).read_text())
        stats = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return most, float((folder / held).read_text()) - float(stats.get(caches, 0))
    except (OSError, ValueError):  # none there, or no limit: "max"
        return None


def kills(machine: Path = _VMSTAT, cgroups: Path = _CGROUPS, mine: Path = _MINE) -> int:
    """Return how many processes the kernel has killed here for want of memory; 0 where it does not say.

    Args:
        machine: where the kernel counts them for the whole machine.
        cgroups: where it shows control groups, which count them in a container that is not shown the machine.
        mine: file that says which control group this process is in.
    """
    if (count := _killed(machine)) is not None:
        return count
    with suppress(OSError):
        events = [_killed(folder / "memory.events") for folder, _ in _folders(cgroups, mine)]
        return max((count for count in events if count is not None), default=0)
    return 0


def _killed(file: Path) -> int | None:
    with suppress(OSError):
        for line in file.read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return None
