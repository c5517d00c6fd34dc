"""A Ray Train worker group that outlives its jobs: processes, imports and the backbone stay for the next one."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import ray.util
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mft_ray.config import ScalingConfig
from mft_ray.errors import Diverged, GivenUp, RunFailed
from mft_ray.models.names import TRACEBACK
from mft_ray.store.scratch import note_above
from mft_ray.training.heartbeat import innermost
from mft_ray.training.job import GenerateJob, Job, Outcome, Restart, ScoreJob, Scores, StopRule, Texts, TrainJob
from mft_ray.training.memory import kills, most_used
from mft_ray.utils.files import write_text
from mft_ray.workers.departure import departing
from mft_ray.workers.environment import secrets, worker_environment
from mft_ray.workers.failures import killed_by_kernel, out_of_memory, raised, root_cause, traceback_of
from mft_ray.workers.job_queue import GONE, Event, Failure, JobQueue, Progress, RecyclePolicy, Result, Sign
from mft_ray.workers.network import NodeInterface
from mft_ray.workers.worker_loop import worker_loop

Heard = Callable[[Progress], object]

# How often a driver that waits for its workers looks whether they are still there, and are to stay.
_LOOK_S = 1.0
# A group that ends has nothing to save; after this long its processes are left for Ray to kill. One that still has a
# job is left so at once: what it has done so far is in its checkpoint.
_END_S = 30.0
# How long nodes may take to say whether their kernel killed a worker.
_KERNEL_S = 10.0


class WorkerGroup:
    """Workers that take one job after another.

    They are a `TorchTrainer`'s, which runs in a thread: it places them, sets up their process group and starts
    them anew when they fail. The group starts with its first job, and makes way for a fresh one as ``renewal``
    says.

    Args:
        scaling: what the group asks of the cluster; every job's must be the same.
        storage: folder for what Ray Train keeps of the group; it goes with the group.
        renewal: when workers are replaced.
    """

    def __init__(self, scaling: ScalingConfig, storage: Path, recycle: RecyclePolicy | None = None) -> None:
        self.scaling, self.storage, self.recycle = scaling, storage, recycle or RecyclePolicy()
        self._note = None if (note := note_above(storage)) is None else str(note)
        self._queue: Any = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._busy = False
        self._waiting: Any = None  # for an event that has not come
        self._job: Job | None = None
        self._stop: StopRule | None = None
        self._place: Any = None  # of the workers, as last heard
        self._queues_lost = 0  # during the job
        self._looked = 0.0

    def submit(self, job: Job, stop: StopRule | None = None) -> None:
        """Hand the workers their next job; the last one must have ended.

        Args:
            job: what to do.
            stop: asked after every evaluation, where it is made, so that all workers stop together.
        """
        self._job, self._stop, self._queues_lost = job, stop, 0
        try:
            self._hand_over()
        except GONE:  # since the last job
            self._forget_queue()
            self._hand_over()

    def _hand_over(self) -> None:
        if self._queue is None:
            # On this node, so that it lives and dies with its driver. It starts while the workers do.
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            actor = ray.remote(num_cpus=0, scheduling_strategy=here)(JobQueue)
            self._queue = actor.remote(self.scaling.workers, self.scaling.max_failures, self.recycle, secrets())
        elif ray.get(self._queue.renewing.remote()):
            self._join()
            ray.get(self._queue.reopen.remote())
        if self._thread is None or not self._thread.is_alive():
            self._start()
        ray.get(self._queue.submit.remote(self._job, self._stop))
        self._busy = True

    def next(self, over: Callable[[], bool] | None = None) -> Progress | Result:
        """Wait for what happens next in the job: its evaluations (or how far it is), in order, then its result.

        Args:
            over: asked about once a second; when it says so the job is given up, whatever its workers do.

        Raises:
            RunFailed: it failed on every allowed try; the message is the worker's.
            Diverged: its loss or scores became NaN.
            GivenUp: as ``over`` said.
        """
        event = self._event(over)
        self._busy = isinstance(event, Progress)
        if isinstance(event, Failure):
            raise _failed(event)
        return event

    def train(self, job: TrainJob, stop: StopRule | None = None, heard: Heard | None = None) -> Outcome:
        """Do a job and return its outcome. One that has an outcome already is not repeated.

        Args:
            job: what to train.
            stop: same as in `submit`.
            heard: told of every evaluation.

        Raises:
            RunFailed: as of `next`.
        """
        done = Path(job.out) / "outcome.json"
        if done.exists():
            return Outcome.load(done)
        Path(job.out).mkdir(parents=True, exist_ok=True)
        trace = Path(job.out) / TRACEBACK
        trace.unlink(missing_ok=True)
        try:
            result = self._run(job, stop, heard)
        except RunFailed as error:
            keep_traceback(error, trace)
            raise
        assert isinstance(result, Outcome)
        return result

    def score(self, job: ScoreJob, heard: Heard | None = None) -> Scores:
        """Do a job and return its scores.

        Args:
            job: what to score.
            heard: told now and then how far it is.

        Raises:
            RunFailed: as of `next`.
        """
        result = self._run(job, None, heard)
        assert isinstance(result, Scores)
        return result

    def answer(self, job: GenerateJob) -> list[str]:
        """Do a job and return the texts that were generated.

        Args:
            job: what to answer.

        Raises:
            RunFailed: as of `next`.
        """
        result = self._run(job, None, None)
        assert isinstance(result, Texts)
        return result.values

    def _run(self, job: Job, stop: StopRule | None, heard: Heard | None) -> Result:
        self.submit(job, stop)
        while isinstance(event := self.next(), Progress):
            if heard:
                heard(event)
        return event

    def break_off(self) -> None:
        """End the job at its next evaluation; its outcome is then ``cancelled``."""
        ray.get(self._queue.cancel.remote())

    def cancel(self) -> None:
        """End the job at its next evaluation, and wait for that."""
        self.break_off()
        while self._busy:
            try:
                self.next()
            except RunFailed:
                return

    def close(self) -> None:
        """Send the workers home and give back what they held."""
        if self._queue is None:
            return
        with suppress(*GONE):
            ray.get(self._queue.send_home.remote())
        self._join(0.0 if self._busy else _END_S)
        ray.kill(self._queue)
        shutil.rmtree(self.storage, ignore_errors=True)

    def _event(self, over: Callable[[], bool] | None = None) -> Event:
        while True:
            if over and over():
                self._give_up()
            try:
                if (event := self._look()) is not None:
                    return event
            except GONE as error:
                return self._without_queue(error)

    def _look(self) -> Event | None:
        """Wait a while for an event; meanwhile look after the workers."""
        self._waiting = self._waiting or self._queue.event.remote()
        self._heed_notices()
        ready, _ = ray.wait([self._waiting], timeout=_LOOK_S)
        if ready:
            waiting, self._waiting = self._waiting, None
            event: Event = ray.get(waiting)
            return event
        if self._thread is not None and self._thread.is_alive():
            self._place = ray.get(self._queue.place.remote())
            self._end_silence(ray.get(self._queue.overdue.remote()))
            return None
        if ray.get(self._queue.moved.remote()):
            self._start()
            return None
        self._give_back()
        if self._error is None or not out_of_memory(self._error):
            return Failure(root_cause(self._error) if self._error else "the worker group has ended")
        # Where a node runs low, Ray kills the controller's helpers too, and the controller gives up.
        ray.get(self._queue.crashed.remote(root_cause(self._error), memory=True))
        self._start()
        return None

    def _without_queue(self, error: BaseException) -> Event:
        """Hand the job to a new queue, whose workers go on from its checkpoint, as often as a group may fail."""
        reason = f"the process that workers get their jobs from is gone: {root_cause(error)}"
        self._forget_queue()
        self._queues_lost += 1
        if self._queues_lost > self.scaling.max_failures:
            return Failure(reason)
        self._hand_over()
        return Restart(reason)

    def _forget_queue(self) -> None:
        """Let go of a queue that is gone, and of its workers."""
        if self._place is not None:
            ray.util.remove_placement_group(self._place)
        self._queue = self._thread = self._waiting = self._place = None

    def _heed_notices(self) -> None:
        """Have the workers leave if a node of theirs is going away, as Ray has been told."""
        if time.monotonic() - self._looked < _LOOK_S:
            return
        self._looked = time.monotonic()
        if (reason := departing(ray.get(self._queue.nodes.remote()))) is not None:
            ray.get(self._queue.leave.remote(reason))

    def _give_back(self) -> None:
        """Free what workers hold whose controller has given up and could not do so: else nobody would."""
        if self._error is not None:
            self._kill_workers()

    def _kill_workers(self) -> None:
        """Take the workers' place away, and with it their processes, wherever they are and whatever they do."""
        if (place := ray.get(self._queue.place.remote())) is not None:
            ray.util.remove_placement_group(place)

    def _end_silence(self, silent: dict[int, Sign]) -> None:
        """Kill workers that give no sign of life, if any, so that they are started anew; keep their stacks."""
        if not silent:
            return
        stacks = {rank: self._stack(rank) for rank in sorted(silent)}
        where = ""
        if isinstance(self._job, TrainJob):
            path = Path(self._job.out) / "stacks.txt"
            path.write_text("\n".join(f"worker {rank}\n{text}" for rank, text in stacks.items()))
            where = f"; the stacks are in {path}"
        each = "; ".join(_silence(rank, sign, stacks[rank]) for rank, sign in sorted(silent.items()))
        ray.get(self._queue.hung.remote(f"no sign of life: {each}{where}"))
        self._kill_workers()

    def _stack(self, rank: int) -> str:
        path = self._stacks / f"{rank}.txt"
        return path.read_text(errors="replace") if path.exists() else ""

    def _give_up(self) -> None:
        """End the job at once."""
        self._busy = False
        try:
            ray.get(self._queue.abandon.remote())
            self._kill_workers()
        except GONE:
            self._forget_queue()
        raise GivenUp("the job was given up")

    @property
    def _stacks(self) -> Path:
        return self.storage / "stacks"

    def _start(self) -> None:
        self._error = None
        self._thread = threading.Thread(target=self._train, daemon=True)
        self._thread.start()

    def _join(self, patience_s: float = _END_S) -> None:
        if self._thread is not None:
            self._thread.join(patience_s)
            self._thread = None

    def _train(self) -> None:
        # Ray Train gives up on a worker group after this long; an autoscaling cluster needs minutes for a node.
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(self.scaling.wait_for_resources_s)
        # It has a group stay until its node is gone. Ours leaves at once: `_heed_notices`.
        os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
        trainer = ray.train.torch.TorchTrainer(
            worker_loop,
            train_loop_config={"queue": self._queue, "stacks": str(self._stacks), "note": self._note},
            torch_config=NodeInterface(interface=self.scaling.network_interface),
            scaling_config=ray.train.ScalingConfig(
                num_workers=self.scaling.workers,
                use_gpu=self.scaling.gpus_per_worker > 0,
                resources_per_worker=worker_resources(self.scaling),
            ),
            run_config=ray.train.RunConfig(
                name="train",
                storage_path=str(self.storage),
                # The queue counts the failures of each job. Without a limit on the controller, a group that
                # cannot start is retried for ever.
                failure_config=ray.train.FailureConfig(max_failures=-1, controller_failure_limit=2),
                callbacks=[_TellQueue(self._queue)],
                worker_runtime_env={"env_vars": worker_environment()},
            ),
        )
        try:
            trainer.fit()
        except BaseException as error:
            self._error = error


@contextmanager
def workers(scaling: ScalingConfig, storage: Path) -> Iterator[WorkerGroup]:
    """Have a worker group for a while. Arguments as of `WorkerGroup`."""
    group = WorkerGroup(scaling, storage)
    try:
        yield group
    finally:
        group.close()


def _silence(rank: int, sign: Sign, stack: str) -> str:
    place = innermost(stack)
    doing = f"worker {rank} {sign.doing}, for {(time.monotonic() - sign.at) / 60:.1f} min now"
    return f"{doing}, in {place}" if place else f"{doing}, and gave no stack: it, or its node, stands still"


def keep_traceback(error: RunFailed, path: Path) -> None:
    """Write the worker's traceback of a failed job, if there is one, and note where it is.

    Args:
        error: error of the job.
        path: path of the file.
    """
    if error.traceback is not None:
        write_text(path, error.traceback)
        error.traceback_file = path


def _failed(failure: Failure) -> RunFailed:
    error = (Diverged if failure.diverged else RunFailed)(failure.reason)
    error.traceback, error.raised = failure.traceback, failure.raised
    return error


class _TellQueue(ray.train.UserCallback):  # type: ignore[misc]
    """Pass on, from Ray Train's controller, why a group failed."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Tell the queue, if it is still there."""
        with suppress(*GONE):
            self._tell(worker_exceptions)

    def _tell(self, worker_exceptions: dict[int, Exception]) -> None:
        failures = worker_exceptions.values()
        reason, memory, trace = root_cause(*failures), out_of_memory(*failures), traceback_of(*failures)
        if not memory and trace is None:  # Ray only knows that it is gone
            killed, used = kernel_killed(ray.get(self._queue.kills.remote()))
            if killed:
                reason, memory = killed_by_kernel(ray.get(self._queue.held.remote()), used), True
        ray.get(self._queue.crashed.remote(reason, memory, trace, not memory and raised(*failures)))


def kernel_killed(before: dict[str, int]) -> tuple[bool, tuple[float, float] | None]:
    """Say whether the kernel of one of some nodes has killed a process for want of memory, and what was in use there.

    Args:
        before: how many each node's had killed, by node.

    Returns:
        The second as of `most_used`.
    """
    asked: dict[Any, str] = {}
    for node in before:
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        asked[ray.remote(num_cpus=0, scheduling_strategy=there, max_retries=0)(_kernel_says).remote()] = node
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=_KERNEL_S) if asked else ([], [])
    for each in late:
        ray.cancel(each, force=True)
    for each in ready:
        with suppress(ray.exceptions.RayError):  # the node is gone, and cannot say
            count, used = ray.get(each)
            if count > before[asked[each]]:
                return True, used
    return False, None


def _kernel_says() -> tuple[int, tuple[float, float] | None]:
    return kills(), most_used()


def worker_resources(scaling: ScalingConfig) -> dict[str, float]:
    """Return what one worker reserves."""
    resources = {"CPU": scaling.cpus_per_worker}
    return {**resources, "GPU": scaling.gpus_per_worker} if scaling.gpus_per_worker else resources
