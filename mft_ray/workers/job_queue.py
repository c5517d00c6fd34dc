"""Where a worker group finds its next job, and where it leaves what came of the last one."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import ray

from mft_ray.training.heartbeat import tell_every
from mft_ray.training.job import (
    Counted,
    Evaluation,
    Job,
    Left,
    Outcome,
    Restart,
    Scores,
    Sizes,
    StopRule,
    Texts,
    TrainJob,
)

# What Ray raises where a queue is gone; the second where it was Ray itself that killed it, for want of memory.
GONE = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError)
_STACK_S = 2.0
_ADVICE = (
    "These need less memory: a shorter data.max_length, scaling.gradient_checkpointing, bfloat16 as scaling.compute "
    "and model.dtype, scaling.zero_stage 2 or 3 with more workers, fewer trials at once (search.max_concurrent)."
)


@dataclass(frozen=True)
class Task:
    """A job on the desk.

    Attributes:
        number: counted from 1 over the desk's life.
        job: what to do.
        stop: the rule that may end it early.
        limit: how much at once, at most, where more has been too much for the memory.
    """

    number: int
    job: Job
    stop: StopRule | None
    limit: Sizes | None = None


@dataclass(frozen=True)
class Failure:
    """A job that came to nothing.

    Attributes:
        reason: why.
        diverged: whether its numbers became NaN, which its settings are to blame for.
        traceback: traceback of the worker whose code raised an error; None where none did.
        raised: whether code raised it, so that it might again: no worker was lost, nor short of memory.
    """

    reason: str
    diverged: bool = False
    traceback: str | None = None
    raised: bool = False


@dataclass(frozen=True)
class RecyclePolicy:
    """When a worker group makes way for a fresh one: what leaks in a library must not add up.

    Attributes:
        jobs: after so many.
        growth: or when a worker's resident memory, in bytes, has grown by so much since its first job ended.
    """

    jobs: int = 50
    growth: float = 2.0**30


@dataclass(frozen=True)
class Sign:
    """The last sign of life of a worker.

    Attributes:
        doing: what it went on to do.
        at: when that was.
        limit: seconds that it may take; None: as many as it likes.
    """

    doing: str
    at: float
    limit: float | None

    @property
    def overdue(self) -> bool:
        """Whether it has taken longer, and the worker had the time to leave its stack."""
        return self.limit is not None and time.monotonic() - self.at > self.limit + tell_every(self.limit) + _STACK_S


Progress = Evaluation | Counted | Restart
Result = Outcome | Scores | Texts
Event = Progress | Result | Failure


class JobQueue:
    """An async actor between the driver, which submits jobs one at a time, and a group's workers.

    All workers take the same jobs in the same order. A worker that was started anew takes the unfinished
    job again, which then goes on from its checkpoint. One that ran out of memory is taken again with half the
    micro-batch, as often as that can be halved; that is no failure. Jobs of the same kind then begin with what worked.
    Nor is it one that workers leave a node which goes away, or go down with it, where that was announced.

    Args:
        workers: number of workers of the group.
        max_failures: how often the group may fail during one job before that is given up.
        renewal: when workers are sent home.
        secrets: what workers add to their environment.
    """

    def __init__(
        self, workers: int, max_failures: int, recycle: RecyclePolicy, secrets: Mapping[str, str] | None = None
    ) -> None:
        self._secrets = dict(secrets or {})
        self._workers, self._max_failures, self._renewal = workers, max_failures, recycle
        self._changed = asyncio.Condition()
        self._task: Task | None = None
        self._settled = 0
        self._events: deque[Event] = deque()
        self._failures = 0
        self._sizes: Sizes | None = None  # of the job, as far as a worker has said
        self._worked: dict[str, Sizes] = {}  # limits by the kind of job
        self._finished: set[int] = set()
        self._cancelled: dict[tuple[int, int], bool] = {}
        self._cancel = self._sent_home = False
        self._jobs, self._grown = 0, 0.0
        self._memory: dict[int, float] = {}  # by rank, after its first job
        self._place: Any = None
        self._kills: dict[str, int] = {}  # by node
        self._nodes: set[str] = set()  # where the workers are
        self._leaving: str | None = None  # why the workers are to leave their job
        self._left = False
        self._signs: dict[int, Sign] = {}  # by rank
        self._hung: str | None = None
        self._killed = False
        self._held = 0.0

    # The driver's side.

    async def submit(self, job: Job, stop: StopRule | None) -> None:
        """Put a job on the desk. The last one must be settled."""
        number = self._task.number + 1 if self._task else 1
        await self._change(lambda: self._put(Task(number, job, stop)))

    async def event(self) -> Event:
        """Wait for what happens next: progress, in order, then a result or a failure."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._events)
            return self._events.popleft()

    async def cancel(self) -> None:
        """End the job at its next evaluation, as ``cancelled``."""
        self._cancel = True

    async def send_home(self) -> None:
        """Let the workers end once their job is settled."""
        await self._change(lambda: setattr(self, "_sent_home", True))

    async def renewing(self) -> bool:
        """Say whether the workers have been sent home."""
        return self._sent_home

    async def reopen(self) -> None:
        """Be ready for a fresh group, once the last one is gone."""
        self._sent_home, self._jobs, self._memory, self._grown = False, 0, {}, 0.0
        self._nodes = set()

    async def overdue(self) -> dict[int, Sign]:
        """Return by rank the last signs of the workers, if none of those at the job has given one in time.

        One that has may do something that the others wait for.
        """
        at_work = {rank: sign for rank, sign in self._signs.items() if rank not in self._finished}
        return at_work if not self._over() and all(sign.overdue for sign in at_work.values()) else {}

    async def hung(self, reason: str) -> None:
        """Note why the group is going to fail: it is killed because its workers gave no sign of life."""
        self._hung, self._signs = reason, {}

    async def abandon(self) -> None:
        """Give the job up, whatever its workers do; the group is going to fail, for it is killed."""
        assert self._task
        self._settled, self._killed = self._task.number, True
        self._finished.clear()
        self._events.clear()
        self._signs = {}

    async def nodes(self) -> set[str]:
        """Return the ids of the nodes that the workers are on."""
        return self._nodes

    async def leave(self, reason: str) -> None:
        """Have the workers leave their job as soon as they have written a checkpoint of it.

        Args:
            reason: in a few words.
        """
        if not self._over() and not self._left:
            self._leaving = reason

    async def moved(self) -> bool:
        """Say, once, whether the workers have left their job for others to go on with."""
        left, self._left = self._left, False
        return left

    async def place(self) -> Any:
        """Return the placement group that the workers were last in, as far as one has said."""
        return self._place

    # The group's side.

    async def secrets(self) -> dict[str, str]:
        """Return what a worker adds to its environment before it does anything."""
        return self._secrets

    async def placed(self, place: Any, node: str, kills: int) -> None:
        """Note where a worker is: placement group and node, and how many processes that node's kernel has killed."""
        self._place, self._kills[node] = place, kills
        self._nodes.add(node)
        self._left = False

    async def kills(self) -> dict[str, int]:
        """Return, by node of the workers, how many processes its kernel had killed for memory when they came."""
        return self._kills

    async def alive(self, rank: int, doing: str, limit: float | None) -> int | None:
        """Note a worker's sign of life, see `Sign`; returns the number of the job that it is to leave, if it is."""
        self._signs[rank] = Sign(doing, time.monotonic(), limit)
        return self._task.number if self._task and self._leaving is not None else None

    async def left(self, left: Left) -> None:
        """Note that a worker has left its job, as all do at the same step."""
        if not self._left:
            reason = f"{self._leaving}; its workers left at step {left.step}"
            self._left, self._leaving = True, None
            self._memory, self._signs, self._nodes = {}, {}, set()
            await self._change(lambda: self._events.append(Restart(reason)))

    async def take(self, after: int) -> Task | None:
        """Wait for a job later than ``after``; None sends the worker home."""

        def due() -> bool:
            return self._task is not None and self._task.number > max(after, self._settled)

        async with self._changed:
            await self._changed.wait_for(lambda: self._sent_home or due())
            return self._task if due() else None

    async def sized(self, sizes: Sizes) -> None:
        """Note how much at once the job begins with, which every worker tells."""
        self._sizes = sizes

    async def too_many(self, reason: str) -> Task | None:
        """Note that the only worker ran out of memory; returns the job with smaller batches, if there are any."""
        tried = self._task
        await self._change(lambda: self._shrink(reason))
        return self._task if self._task is not tried else None

    async def report(self, task: Task, evaluation: Evaluation) -> bool:
        """Note an evaluation, which every worker reports; returns, alike to all, whether to break off."""
        key = (task.number, evaluation.step)
        self._held = evaluation.memory
        if key not in self._cancelled:
            self._cancelled = {key: self._cancel}
            await self._change(lambda: self._events.append(evaluation))
        return self._cancelled[key]

    async def count(self, counted: Counted) -> None:
        """Note how far a job is that has no evaluations."""
        await self._change(lambda: self._events.append(counted))

    async def finish(self, rank: int, result: Result | Failure, memory: float) -> None:
        """Note that a worker is done with its job, and how many bytes it occupies."""
        self._finished.add(rank)
        self._grown = max(self._grown, memory - self._memory.setdefault(rank, memory))
        if len(self._finished) == self._workers:
            self._jobs += 1
            # Decided before the driver hears of the result, and so before there is another job.
            self._sent_home |= self._jobs >= self._renewal.jobs or self._grown > self._renewal.growth
            await self._change(lambda: self._settle(result))

    async def held(self) -> float:
        """Return the bytes that the worker with the most had at the job's last evaluation; 0 where that is not known.

        Of a worker on a GPU it is not: what it says there is of the GPU.
        """
        return 0.0 if self._task is None or self._task.job.scaling.gpus_per_worker else self._held

    async def crashed(
        self, reason: str, memory: bool = False, traceback: str | None = None, raised: bool = False
    ) -> None:
        """Note that the group has failed and will be started anew.

        Args:
            reason: in one line.
            memory: whether there was too little of it.
            traceback: traceback of the worker whose code raised an error; None where none did.
            raised: whether code raised it, so that it might again.
        """
        self._finished.clear()
        self._memory, self._signs, self._nodes = {}, {}, set()
        reason, hung, self._hung = self._hung or reason, self._hung is not None, None
        expected, self._killed, self._left = self._killed or self._left, False, False
        leaving, self._leaving = self._leaving, None
        if expected or self._over():
            return  # no failure of the job that is on the desk
        if leaving is not None and not (memory or raised or hung):
            await self._change(lambda: self._events.append(Restart(f"{leaving}, and {reason}")))
            return
        failure = Failure(reason) if hung else Failure(reason, traceback=traceback, raised=raised)
        await self._change(lambda: self._crash(failure, memory and not hung))

    def _over(self) -> bool:
        return self._task is None or self._task.number == self._settled

    async def _change(self, action: Callable[[], object]) -> None:
        async with self._changed:
            action()
            self._changed.notify_all()

    def _crash(self, failure: Failure, memory: bool) -> None:
        if memory and self._shrink(failure.reason):
            return
        self._failures += 1
        if self._failures <= self._max_failures:
            self._events.append(Restart(failure.reason))
        elif memory:
            tried = " with one example at a time" if self._sizes else ""
            self._settle(replace(failure, reason=f"out of memory{tried}: {failure.reason}. {_ADVICE}"))
        else:
            self._settle(failure)

    def _shrink(self, reason: str) -> bool:
        """Put the job on the desk again with smaller batches, if there are any."""
        assert self._task
        smaller = self._sizes.smaller() if self._sizes else None
        if self._sizes is None or smaller is None:
            return False
        self._task, before, self._sizes = replace(self._task, limit=smaller), self._sizes, None
        self._events.append(Restart(f"out of memory ({reason}): {_change(before, smaller, self._task.job)}"))
        return True

    def _put(self, task: Task) -> None:
        self._task = replace(task, limit=self._worked.get(_kind(task.job)))
        self._failures, self._cancel, self._sizes, self._held = 0, False, None, 0.0
        self._leaving = None

    def _settle(self, result: Result | Failure) -> None:
        assert self._task
        self._settled = self._task.number
        self._finished.clear()
        self._events.append(result)
        if self._task.limit and not isinstance(result, Failure):
            self._worked[_kind(self._task.job)] = self._task.limit


def _kind(job: Job) -> str:
    """Name the jobs that need about as much memory."""
    return f"{type(job).__name__} {job.model} {isinstance(job, TrainJob) and job.frozen}"


def _change(before: Sizes, after: Sizes, job: Job) -> str:
    if isinstance(job, TrainJob) and before.training > after.training:
        return f"micro-batches of at most {after.training:,} instead of {before.training:,} tokens"
    return f"at most {after.scoring} instead of {before.scoring} examples scored at once"
