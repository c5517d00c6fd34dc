"""What the tests run inside Ray Train workers. Many jobs share one worker group: its start costs seconds."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch

from mft_ray.training.job import Evaluation, TrainJob

Task = Callable[[torch.device], object]


def work(config: Mapping[str, Sequence[Task]]) -> None:
    """Do tasks one after another, on every worker of a group."""
    for task in config["tasks"]:
        task(ray.train.torch.get_device())


def train_job(job: TrainJob, device: torch.device) -> None:
    from mft_ray.training.cache import WorkerCache
    from mft_ray.training.loop import train

    train(job, WorkerCache(device))


def train_in_pieces(job: TrainJob, device: torch.device) -> None:
    """Have logits of three positions at a time."""
    from mft_ray.training.step import answer_loss, head

    made, summed = [], head.Head.summed

    def noted(self: head.Head, *given: Any) -> torch.Tensor:
        made.append(given)
        return summed(self, *given)

    at_once, answer_loss._AT_ONCE, head.Head.summed = answer_loss._AT_ONCE, 3 * 20, noted
    try:
        train_job(job, device)
        assert made
    finally:
        answer_loss._AT_ONCE, head.Head.summed = at_once, summed


def train_interrupted(job: TrainJob, step: int, device: torch.device) -> None:
    """Break off at an evaluation and start again, as another process would."""
    from mft_ray.training.cache import WorkerCache
    from mft_ray.training.loop import train

    try:
        train(job, WorkerCache(device), RaiseAt(step))
    except InterruptedError:
        write_facts(job, {"history": [row["step"] for row in newest_checkpoint(job)["history"]]})
    train(job, WorkerCache(device))


def train_left(job: TrainJob, step: int, device: torch.device) -> None:
    """Leave between two evaluations, as for workers elsewhere, and go on from there as they would."""
    from mft_ray.training.cache import WorkerCache
    from mft_ray.training.job import Left
    from mft_ray.training.loop import train

    # It is not asked where an evaluation is due.
    asked = iter(each for each in range(1, job.train.steps) if each % job.train.eval_every)
    assert train(job, WorkerCache(device), leave=lambda: next(asked) == step) == Left(step)
    torch.distributed.barrier()  # the first worker puts it in its place
    assert newest_checkpoint(job)["position"]["step"] == step
    train(job, WorkerCache(device))


def look_inside(job: TrainJob, device: torch.device) -> None:
    """Take single steps, note what cannot be seen from outside, and leave a checkpoint."""
    from mft_ray.training.cache import WorkerCache
    from mft_ray.training.loop import Trainer
    from mft_ray.training.methods.masks import MaskScores

    assert job.train.eval_every == 1
    trainer = Trainer(job, WorkerCache(device))
    assert isinstance(trainer.method, MaskScores)
    trainer.evaluate()
    rates: list[float] = []
    for _ in range(job.train.steps):
        rates.append(trainer.engine.get_lr()[0])
        trainer.train_until_evaluation()
    logits = trainer.engine(input_ids=torch.tensor([[3, 4, 5]])).logits
    trainer.evaluate()
    trainer.checkpoint()
    facts = {
        "rates": rates,
        "compute": str(logits.dtype),
        "scores": sorted({str(scores.dtype) for scores in trainer.method.parameters}),
        "backbone": sorted({str(p.dtype) for p in trainer.engine.module.parameters() if not p.requires_grad}),
        "momenta": [_momentum(trainer.engine, scores) for scores in trainer.method.parameters],
    }
    trainer.engine.destroy()
    write_facts(job, facts)


def _momentum(engine: Any, parameter: torch.nn.Parameter) -> float:
    """Return the norm of Adam's running mean of the gradient: Adam's steps hide a gradient's scale."""
    import deepspeed

    if parameter in engine.optimizer.state and engine.zero_optimization_stage() == 0:
        return float(engine.optimizer.state[parameter]["exp_avg"].norm())
    return float(deepspeed.utils.safe_get_full_optimizer_state(parameter, "exp_avg").norm())


def newest_checkpoint(job: TrainJob) -> dict[str, Any]:
    """Return what DeepSpeed wrote beside the optimizer: module and history."""
    newest = sorted(Path(job.out).glob("checkpoints/step-*"))[-1]
    path = next(p for p in sorted(newest.glob("engine/*model_states.pt")))
    content: dict[str, Any] = torch.load(path, weights_only=False)
    return content


def write_facts(job: TrainJob, facts: Mapping[str, Any]) -> None:
    """Leave something for the test beside the job's result."""
    if torch.distributed.get_rank() == 0:
        (Path(job.out) / "facts.json").write_text(json.dumps(facts))


def read_facts(job: TrainJob) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((Path(job.out) / "facts.json").read_text())
    return facts


@dataclass(frozen=True)
class RaiseAt:
    """A stop rule with a fault: raises at one evaluation."""

    step: int

    def __call__(self, history: Sequence[Evaluation], total_steps: int) -> str | None:
        if history[-1].step == self.step:
            raise InterruptedError(f"interrupted at step {self.step}")
        return None


@dataclass(frozen=True)
class KillOnce:
    """A stop rule that kills one worker's process at one evaluation, and not again."""

    step: int
    marker: str
    rank: int = 0

    def __call__(self, history: Sequence[Evaluation], total_steps: int) -> str | None:
        mine = torch.distributed.get_rank() == self.rank
        if mine and history[-1].step == self.step and not os.path.exists(self.marker):
            Path(self.marker).write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return None


@dataclass(frozen=True)
class LimitFiles:
    """A stop rule that lets the process write only small files from one evaluation on, as on a disk that is full."""

    step: int
    size: int = 2**16

    def __call__(self, history: Sequence[Evaluation], total_steps: int) -> str | None:
        if history[-1].step == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))
        return None


@dataclass(frozen=True)
class LimitMemory:
    """A stop rule that grants the process no more memory at one evaluation, and asks for some."""

    step: int

    def __call__(self, history: Sequence[Evaluation], total_steps: int) -> str | None:
        if history[-1].step == self.step:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**26, resource.RLIM_INFINITY))
            torch.zeros(2**28)
        return None


@dataclass(frozen=True)
class TooMany:
    """A stop rule that, from the first evaluation on, leaves one worker no memory for more tokens than some at once.

    Asks for memory that is not there, as long as a marker is.
    """

    tokens: int
    marker: str
    rank: int = 0

    def __call__(self, history: Sequence[Evaluation], total_steps: int) -> str | None:
        from mft_ray.training import loop

        arranged = loop.arranged

        def greedy(rows: Sequence[Any], *arguments: Any) -> Any:
            batch, labels = arranged(rows, *arguments)
            if labels.numel() > self.tokens and os.path.exists(self.marker):
                torch.empty(2**50)
            return batch, labels

        if torch.distributed.get_rank() == self.rank and arranged.__name__ != "greedy":
            loop.arranged = greedy
        return None


@dataclass(frozen=True)
class NoteSteps:
    """A stop rule that only notes at which steps it was asked."""

    path: str

    def __call__(self, history: Sequence[Evaluation], total_steps: int) -> str | None:
        with Path(self.path).open("a") as file:
            file.write(f"{history[-1].step} ")
        return None

    def steps(self) -> list[int]:
        return [int(step) for step in Path(self.path).read_text().split()]


@dataclass(frozen=True)
class NoteHosts:
    """A stop rule that notes on which hosts the workers are, and may have each step take so many seconds from then on.

    It goes to sleep in the steps, until there is a file: no machine is done before something has happened to it.
    """

    path: str
    pause: float = 0.0
    until: str = ""

    def __call__(self, history: Sequence[Evaluation], total_steps: int) -> str | None:
        from mft_ray.training import loop

        with Path(self.path).open("a") as file:
            file.write(f"{history[-1].step} {torch.distributed.get_rank()} {socket.gethostname()}\n")
        if self.pause and (given := loop.global_batch).__name__ != "paused":

            def paused(*arguments: Any) -> list[int]:
                deadline = time.monotonic() + self.pause
                while time.monotonic() < deadline and not os.path.exists(self.until):
                    time.sleep(0.05)
                return given(*arguments)

            loop.global_batch = paused
        return None

    def hosts(self, step: int) -> list[str]:
        """By rank, at an evaluation."""
        found = [line.split() for line in Path(self.path).read_text().splitlines()]
        return [host for _, host in sorted((rank, host) for at, rank, host in found if int(at) == step)]


@dataclass(frozen=True)
class Hang:
    """At a step, once: sleep for ever in Python, or stand still as a process that is stopped does."""

    step: int
    marker: str
    stopped: bool = False
    rank: int = 0

    def __call__(self, history: Sequence[Evaluation], total_steps: int) -> str | None:
        here = ray.train.get_context().get_world_rank() == self.rank
        if here and history[-1].step == self.step and Path(self.marker).exists():
            Path(self.marker).unlink()
            self.stand_still()
        return None

    def stand_still(self) -> None:
        if self.stopped:
            os.kill(os.getpid(), signal.SIGSTOP)
        while True:
            time.sleep(3600)
