"""What a machine has: versions, processors, memory, cards. Runs here, or as a Ray task on any node."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

import psutil  # type: ignore[import-untyped]
from packaging.requirements import Requirement

PACKAGE = "mft_ray"
_ALSO = ("vllm", "liger-kernel", "flash-attn", "bitsandbytes")  # used where they are there
_NVIDIA_SMI_S = 20


@dataclass(frozen=True)
class Card:
    """A GPU.

    Attributes:
        name: name of the model.
        memory: bytes.
        driver: version of the driver.
    """

    name: str
    memory: int
    driver: str


@dataclass(frozen=True)
class Machine:
    """A machine as a worker on it sees it.

    Attributes:
        host: name of the host.
        system: operating system.
        python: version of Python.
        packages: version by name, of all that mft_ray needs and of what it uses where it is there.
        cpus: processors that this process may use.
        memory: bytes of memory.
        shared_memory: bytes of /dev/shm; None where there is none.
        cards: GPUs, by the driver.
        cuda: version of CUDA that torch was built for; None for a build without.
        clock: seconds since 1970.
    """

    host: str
    system: str
    python: str
    packages: dict[str, str]
    cpus: int
    memory: int
    shared_memory: int | None
    cards: tuple[Card, ...]
    cuda: str | None
    clock: float


def this_machine() -> Machine:
    """Look at the machine that this runs on."""
    shm = "/dev/shm"
    return Machine(
        host=socket.gethostname(),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        packages=installed(),
        cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory=psutil.virtual_memory().total,
        shared_memory=shutil.disk_usage(shm).total if os.path.isdir(shm) else None,
        cards=_cards(),
        cuda=_cuda(),
        clock=time.time(),
    )


def requirements() -> list[Requirement]:
    """Return what mft_ray needs, optional parts with their marker; nothing where it runs uninstalled."""
    try:
        return [Requirement(text) for text in requires(PACKAGE) or ()]
    except PackageNotFoundError:
        return []


def installed() -> dict[str, str]:
    """Return the version of mft_ray and of every package that it uses, where it is installed."""
    needed = [need.name for need in requirements() if need.marker is None or need.marker.evaluate({"extra": ""})]
    versions = {name: version_of(name) for name in (PACKAGE, *needed, *_ALSO)}
    return {name: there for name, there in versions.items() if there is not None}


def version_of(name: str) -> str | None:
    """Return the version of an installed package; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cards() -> tuple[Card, ...]:
    """Return the GPUs that the driver sees: torch says nothing of them where it was built without CUDA."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=_NVIDIA_SMI_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [[part.strip() for part in line.split(",")] for line in said.splitlines() if line.strip()]
    return tuple(Card(row[0], int(row[1]) * 2**20, row[2]) for row in rows if len(row) == 3 and row[1].isdecimal())


def _cuda() -> str | None:
    import torch

    return torch.version.cuda
