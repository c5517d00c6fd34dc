"""Checkpoints of a run: trained parameters, optimizer and history; never the frozen backbone."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist

from mft_ray.training.job import Evaluation, read_history

_PREFIX = "step-"


def save_checkpoint(engine: Any, folder: Path, history: list[Evaluation]) -> None:
    """Write a checkpoint, whole or not at all, and drop the ones before it. Every worker must call it.

    Args:
        engine: the DeepSpeed engine.
        folder: the run's checkpoint folder, shared by all workers.
        history: the evaluations so far; the last one names the step.
    """
    step = history[-1].step
    partial, final = folder / f"partial-{step}", folder / f"{_PREFIX}{step:08d}"
    if dist.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    state = {"history": [asdict(evaluation) for evaluation in history]}
    engine.save_checkpoint(
        str(partial), tag="engine", client_state=state, exclude_frozen_parameters=True, save_latest=False
    )
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        for older in _complete(folder)[:-1]:
            shutil.rmtree(older, ignore_errors=True)


def load_checkpoint(engine: Any, folder: Path) -> list[Evaluation]:
    """Bring the engine to the newest checkpoint and return its history; an empty list if there is none."""
    complete = _complete(folder)
    if not complete:
        return []
    path, state = engine.load_checkpoint(str(complete[-1]), tag="engine", load_module_strict=False)
    if path is None:
        raise RuntimeError(f"DeepSpeed could not load the checkpoint {complete[-1]}")
    return read_history(state["history"])


def drop_checkpoints(folder: Path) -> None:
    """Remove a finished run's checkpoints: its outcome and best state are kept elsewhere."""
    shutil.rmtree(folder, ignore_errors=True)


def _complete(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{_PREFIX}*"))
