"""What a worker does all its life: take a job, do it, take the next. It keeps what does not change in between."""

from __future__ import annotations

import ctypes
import gc
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import ray.util

from mft_ray.errors import RunFailed
from mft_ray.store.scratch import SCRATCH
from mft_ray.training.heartbeat import Alive, Heartbeat
from mft_ray.training.job import GenerateJob, Left, Outcome, ScoreJob, Sizes
from mft_ray.training.memory import kills
from mft_ray.workers.departure import Departure, Line
from mft_ray.workers.environment import take
from mft_ray.workers.failures import note_traceback, out_of_memory, root_cause
from mft_ray.workers.job_queue import GONE, Failure, Result, Task


def worker_loop(config: Mapping[str, Any]) -> None:
    """Do the jobs on a queue until sent home, or until it is gone: the function of every worker of a group.

    Args:
        config: ``queue``, the handle of a `JobQueue`, ``stacks``, a folder for what workers leave that hang, and
            ``note``, as of `check_seen`.
    """
    with suppress(*GONE):  # the driver has a new one then, with other workers
        _work(config)


def _work(config: Mapping[str, Any]) -> None:
    queue, after = config["queue"], 0
    check_seen(config["note"])
    take(ray.get(queue.secrets.remote()))
    # Imports torch and DeepSpeed, which only workers need.
    from mft_ray.training.cache import WorkerCache

    cache = WorkerCache(ray.train.torch.get_device())
    rank = ray.train.get_context().get_world_rank()
    line = Line(queue, rank)
    heartbeat = Heartbeat(line.tell, Path(config["stacks"]) / f"{rank}.txt")
    node = ray.get_runtime_context().get_node_id()
    ray.get(queue.placed.remote(ray.util.get_current_placement_group(), node, kills()))
    while (task := ray.get(queue.take.remote(after))) is not None:
        after = task.number
        minutes = task.job.scaling.silence_minutes
        heartbeat.begin(None if minutes is None else minutes * 60)
        try:
            leave = Departure(partial(line.to_leave, task.number), cache.device)
            result = _done(task, queue, cache, heartbeat, leave)
        except Exception as error:
            note_traceback(error)
            raise
        _give_back_memory()
        heartbeat.rest()
        if isinstance(result, Left):
            ray.get(queue.left.remote(result))
            return
        ray.get(queue.finish.remote(rank, result, _resident_bytes()))


def check_seen(note: str | None) -> None:
    """Refuse to work where the run folder of the driver is not seen.

    Args:
        note: file that marks it, of a run in an object store, which is worked on in a copy; else None.

    Raises:
        RunFailed: it is not there.
    """
    if note is not None and not os.path.exists(note):
        raise RunFailed(
            f"{socket.gethostname()} does not see {Path(note).parent}, in which this run, of an object store, is "
            f"worked on. Have all nodes share that folder ({SCRATCH} names another, before Ray is started on the "
            "head), or run on one machine."
        )


def _done(task: Task, queue: Any, cache: Any, alive: Alive, leave: Callable[[], bool]) -> Result | Failure | Left:
    """Do a job; a lone worker that runs out of memory tries again by itself, with smaller batches."""
    alone = ray.train.get_context().get_world_size() == 1
    while True:
        try:
            return _do(task, queue, cache, alive, leave)
        except Exception as error:
            # Other workers would wait for this one in vain: then the group starts anew, and gets the smaller task.
            if not (alone and out_of_memory(error)):
                raise
            reason = root_cause(error)
            again = ray.get(queue.too_many.remote(reason))
            if again is None:
                raise
            task = again
        # After the exception is gone, and all that its frames held. The model may have been left in any state.
        cache.forget()
        _give_back_memory()


def _do(task: Task, queue: Any, cache: Any, alive: Alive, leave: Callable[[], bool]) -> Result | Failure | Left:
    from mft_ray.training.loop import train
    from mft_ray.training.scoring import answer, score

    job = task.job

    def sized(sizes: Sizes) -> None:
        ray.get(queue.sized.remote(sizes))

    if isinstance(job, GenerateJob):
        return answer(job, cache, task.limit, sized, alive)
    if isinstance(job, ScoreJob):
        return score(job, cache, queue.count.remote, task.limit, sized, alive)
    outcome = Path(job.out) / "outcome.json"
    if outcome.exists():  # by workers that died before they could say so
        return Outcome.load(outcome)
    try:
        return train(
            job,
            cache,
            task.stop,
            report=lambda evaluation: ray.get(queue.report.remote(task, evaluation)),
            limit=task.limit,
            sized=sized,
            alive=alive,
            leave=leave,
        )
    except FloatingPointError as error:
        # It has diverged, on all workers alike: another try would as well, and the group is as good as before.
        return Failure(str(error), diverged=True)


def _give_back_memory() -> None:
    """Return what is free to the system: the next job's tensors have other sizes."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def _resident_bytes() -> float:
    return float(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
