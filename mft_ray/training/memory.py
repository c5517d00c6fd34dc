"""The most memory that a worker has held at once."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


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
