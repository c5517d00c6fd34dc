"""What each Python process on the hosts of a test does at its start, by its environment: it is their sitecustomize."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

AHEAD_S = "TEST_AHEAD_S"  # by how much its clock is
HOLD_AFTER, GATE = "TEST_HOLD_AFTER", "TEST_GATE"  # the last step that trials take, and a folder with these two:
PASSES, WAITING = "passes", "waiting"  # a file each for those that may go on, and for those that have come so far
ALL = "all"  # may go on
_LOOP = "mft_ray.training.loop"
_PAUSE_S = 0.02  # workers ask each other whether to leave only every so many times


@dataclass(frozen=True)
class Gate:
    """Where trials of a search wait until they may go on: however slow a machine is, none is over before.

    Attributes:
        folder: for the files of this.
    """

    folder: Path

    def set_up(self, env: Mapping[str, str], hold_after: int | None) -> dict[str, str]:
        """Return an environment for all that is started.

        Args:
            env: theirs, else.
            hold_after: the last step before trials wait; at the next one no evaluation may be due. None: they do not.
        """
        for name in ("site", PASSES, WAITING):
            (self.folder / name).mkdir()
        shutil.copy(__file__, self.folder / "site" / "sitecustomize.py")
        paths = [str(self.folder / "site"), *filter(None, [env.get("PYTHONPATH")])]
        held = {} if hold_after is None else {HOLD_AFTER: str(hold_after), GATE: str(self.folder)}
        return {**env, "PYTHONPATH": os.pathsep.join(paths), **held}

    def let_pass(self, trial: str = ALL) -> None:
        """Let a trial, or all, go on."""
        (self.folder / PASSES / trial).touch()

    def waiting(self) -> set[str]:
        """Return the trials that have come so far."""
        return {path.name for path in (self.folder / WAITING).iterdir()}


def set_clock(ahead_s: float) -> None:
    seconds, nanoseconds = time.time, time.time_ns
    time.time = lambda: seconds() + ahead_s
    time.time_ns = lambda: nanoseconds() + int(ahead_s * 1e9)


class Holding:
    """Finds the training loop for whoever imports it, and has trials wait in it; nothing else is imported for that."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == _LOOP else None
        if spec is not None:
            loader: Any = spec.loader
            given = loader.exec_module

            def load(module: Any) -> None:
                given(module)
                hold(module.Trainer, int(os.environ[HOLD_AFTER]), Path(os.environ[GATE]))

            loader.exec_module = load
        return spec


def hold(trainer: Any, after: int, gate: Path) -> None:
    """Have trials wait between two evaluations for a pass; they may leave meanwhile, as they may after any step."""
    given = trainer.train_until_evaluation

    def held(self: Any, leave: Callable[[], bool]) -> bool:
        out = Path(self.job.out)
        free = out.parent.name != "trials"

        def waits() -> bool:
            nonlocal free
            while self.step > after and not free:
                (gate / WAITING / out.name).touch()
                self.alive("trains")
                if leave():
                    return True
                time.sleep(_PAUSE_S)
                free = on_all_workers(any((gate / PASSES / name).exists() for name in (out.name, ALL)))
            return leave()

        return bool(given(self, waits))

    trainer.train_until_evaluation = held


def on_all_workers(here: bool) -> bool:
    import torch
    import torch.distributed as dist

    said = torch.tensor(float(here))
    dist.all_reduce(said, op=dist.ReduceOp.MIN)
    return bool(said)


if AHEAD_S in os.environ:
    set_clock(float(os.environ[AHEAD_S]))
if HOLD_AFTER in os.environ and Holding not in sys.meta_path:
    sys.meta_path.insert(0, Holding)  # type: ignore[arg-type]
