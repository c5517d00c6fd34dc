"""GPUs that can be rented, and how fast a job computes on them: what is measured, and what a data sheet says."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from mft_ray.errors import UserError
from mft_ray.workers.machine import Machine

# Of the data sheet's rate, what a masked training step reached on an H100: 426 of 989 TFLOP/s, LLaMA-3.1-8B, layers
# 4-7, bf16, micro-batches of 4,096 tokens (benchmarks/results/gpu.md).
MEASURED_SHARE, MEASURED_ON = 426 / 989.4, "h100-80g"
_SIDE, _TRIES = 1536, 3


@dataclass(frozen=True)
class Card:
    """A device that workers compute on.

    Attributes:
        name: what it is called here.
        memory: bytes.
        rate: operations in a second of dense matrix products, in the dtype that is computed in.
        source: where the rate is from.
        gpu: whether it is one; else the processors of a machine.
        count: how many there are; None: as many as are asked for.
    """

    name: str
    memory: float
    rate: float
    source: str
    gpu: bool = True
    count: int | None = None

    @property
    def share(self) -> float:
        """Share of the rate that a step reaches: measured on one card, and assumed to be that on all else."""
        return MEASURED_SHARE

    @property
    def share_is_measured(self) -> bool:
        """Whether the share of the rate that a step reaches was measured on this device."""
        return self.name == MEASURED_ON


# Memory in 10^9 bytes, and dense bf16 TFLOP/s with fp32 sums. From NVIDIA's data sheets (A100, A10, L4, L40S, H100,
# H200, DGX B200 divided by 8) and architecture white papers (GA102 for RTX 3090, Ada for RTX 4090); where a sheet gives
# the rate with sparsity only, half of it.
_SHEETS: dict[str, tuple[int, float]] = {
    "a10-24g": (24, 125.0),
    "a100-40g": (40, 312.0),
    "a100-80g": (80, 312.0),
    "b200-180g": (180, 2250.0),
    "h100-80g": (80, 989.4),
    "h100-pcie-80g": (80, 756.0),
    "h200-141g": (141, 989.4),
    "l4-24g": (24, 121.0),
    "l40s-48g": (48, 362.0),
    "rtx3090-24g": (24, 71.0),
    "rtx4090-24g": (24, 165.2),
}
CARDS = {name: Card(name, memory * 1e9, rate * 1e12, "data sheet") for name, (memory, rate) in _SHEETS.items()}


def card(name: str) -> Card:
    """Return a card by its name.

    Raises:
        UserError: it is not known; the message names those that are.
    """
    if name.lower() not in CARDS:
        raise UserError(f"--gpu {name!r} is not a known card. Known are {', '.join(CARDS)}; h100-80g is the SXM one.")
    return CARDS[name.lower()]


def processors(machine: Machine, dtype: torch.dtype, cpus: float) -> Card:
    """Return the processors that one worker has, as fast as they now multiply two matrices.

    Args:
        machine: this one.
        dtype: dtype of the product.
        cpus: processors of a worker.
    """
    one, other = (torch.ones(_SIDE, _SIDE, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(_TRIES):
        began = time.perf_counter()
        one @ other
        seconds.append(time.perf_counter() - began)
    rate = 2 * _SIDE**3 / min(seconds) * min(1.0, cpus / machine.cpus)
    source = f"measured now: one product of two {_SIDE} x {_SIDE} matrices"
    return Card("processors", float(machine.memory), rate, source, gpu=False, count=machine.cpus)


def installed(machine: Machine) -> Card:
    """Return the GPUs of this machine, at the rate of the known card that they are.

    Args:
        machine: this one, with GPUs.

    Raises:
        UserError: they are of a kind whose rate is not known.
    """
    there = machine.cards[0]
    plain = there.name.lower().replace(" ", "").replace("geforce", "").replace("nvidia", "")
    fitting = [
        known
        for known in CARDS.values()
        if plain.startswith(known.name.split("-")[0])
        and ("pcie" in plain) == ("pcie" in known.name)
        and abs(known.memory - there.memory) < 0.15 * known.memory
    ]
    if not fitting:
        raise UserError(
            f"The rate of this machine's {there.name} is not known here. Name the card that is most like it with "
            f"--gpu: {', '.join(CARDS)}."
        )
    memory = float(min(each.memory for each in machine.cards))
    return Card(fitting[0].name, memory, fitting[0].rate, "data sheet", count=len(machine.cards))
