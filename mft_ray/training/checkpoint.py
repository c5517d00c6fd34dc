"""Checkpoints of a run: trained parameters, optimizer and history; never the frozen backbone."""

from __future__ import annotations

import glob
import logging
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from mft_ray.errors import RunFailed
from mft_ray.training.job import Evaluation, read_history
from mft_ray.utils.files import put_in_place

_PREFIX = "step-"
# The one before the newest is there for the case that the newest cannot be read.
KEPT = 2

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Position:
    """Where a run is that stands between two evaluations. What is not said here is as of `Evaluation`.

    Attributes:
        losses: mean training loss per answer token of each step since the last evaluation.
    """

    step: int
    tokens: int
    seconds: float
    flops: float
    memory: float
    losses: list[float]


def save_checkpoint(engine: Any, folder: Path, history: list[Evaluation], position: Position | None = None) -> None:
    """Write a checkpoint, whole or not at all, and drop all before it but one. Every worker must call it.

    Args:
        engine: the DeepSpeed engine.
        folder: the run's checkpoint folder, shared by all workers.
        history: the evaluations so far.
        position: where the run is; None: at its last evaluation.

    Raises:
        RunFailed: it cannot be written.
    """
    step = position.step if position else history[-1].step
    partial, final = folder / f"partial-{step}", folder / f"{_PREFIX}{step:08d}"
    try:
        if dist.get_rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        dist.barrier()
        state = {
            "history": [asdict(evaluation) for evaluation in history],
            "position": asdict(position) if position else None,
        }
        engine.save_checkpoint(
            str(partial), tag="engine", client_state=state, exclude_frozen_parameters=True, save_latest=False
        )
        dist.barrier()
        if dist.get_rank() == 0:
            put_in_place(partial, final)
            for older in _complete(folder)[:-KEPT]:
                shutil.rmtree(older, ignore_errors=True)
    except (OSError, RuntimeError) as error:  # torch's own for a write that failed is the latter
        shutil.rmtree(partial, ignore_errors=True)
        reason = " ".join(str(error).split())
        raise RunFailed(f"the checkpoint of step {step} cannot be written to {folder}: {reason}") from error


def load_checkpoint(engine: Any, folder: Path) -> tuple[list[Evaluation], Position | None]:
    """Bring the engine to the newest checkpoint that can be read; return its history, and where the run is after that.

    Returns:
        An empty history if there is none; no position where the run is at its last evaluation.
    """
    # One worker chooses for all: that they agree matters more than that each has looked.
    choice = [_newest_sound(folder) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(choice)
    if choice[0] is None:
        return [], None
    with _plainly_named(choice[0]) as folder_to_load:
        path, state = engine.load_checkpoint(folder_to_load, tag="engine", load_module_strict=False)
    if path is None:
        raise RuntimeError(f"DeepSpeed could not load the checkpoint {choice[0]}")
    position = state.get("position")  # earlier versions wrote none
    return read_history(state["history"]), Position(**position) if position else None


def drop_checkpoints(folder: Path) -> None:
    """Remove a finished run's checkpoints: its outcome and best state are kept elsewhere."""
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _plainly_named(path: str) -> Iterator[str]:
    """Lead to a folder by a name without * ? and [, which DeepSpeed would take for a pattern."""
    if glob.escape(path) == path:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="mft_ray-") as folder:
        link = os.path.join(folder, "checkpoint")
        os.symlink(path, link)
        yield link


def _complete(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{_PREFIX}*"))


def _newest_sound(folder: Path) -> str | None:
    for checkpoint in reversed(_complete(folder)):
        damage = _damage(checkpoint)
        if damage is None:
            return str(checkpoint)
        log.warning("the checkpoint %s is damaged (%s): going back to the one before it", checkpoint, damage)
    return None


def _damage(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint, by the checksums that torch writes into its files; None if nothing is."""
    files = sorted(checkpoint.rglob("*.pt"))
    for file in files:
        try:
            with zipfile.ZipFile(file) as archive:
                if (member := archive.testzip()) is not None:
                    return f"{file.name}: {member}"
        except (OSError, zipfile.BadZipFile) as error:
            return f"{file.name}: {error}"
    return None if files else "it is empty"
