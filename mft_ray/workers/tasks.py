"""Ray tasks that ask for what a worker does, in an environment like its own, and are watched as it is."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mft_ray.config import ScalingConfig
from mft_ray.errors import RunFailed
from mft_ray.training.heartbeat import FIRST_S
from mft_ray.utils.files import read_json, write_json
from mft_ray.workers.environment import with_secrets, worker_environment
from mft_ray.workers.group import worker_resources

Say = Callable[[str], object]

_PROCESS = "process.json"
# How often a driver that waits looks for signs of life, and how long a node may take to end a process.
_LOOK_S = 1.0
_KILL_S = 30.0


def remote_like_worker(function: Callable[..., Any], scaling: ScalingConfig) -> Any:
    """Return a Ray task that asks for what one worker does, in an environment like a worker's."""
    resources = worker_resources(scaling)
    return ray.remote(
        num_cpus=resources["CPU"],
        num_gpus=resources.get("GPU", 0),
        max_retries=scaling.max_failures,
        runtime_env={"env_vars": worker_environment()},
    )(with_secrets(function))


def stream(
    function: Callable[..., Iterator[Any]],
    calls: Sequence[tuple[Any, ...]],
    homes: Sequence[Sequence[Path]],
    scaling: ScalingConfig,
    log: Say,
) -> Iterator[Any]:
    """Yield what calls of a generator function yield, each in a task of its own, as it comes.

    A task gives a sign of life by what it yields and by any change of a file in its homes. One that gives none for
    ``scaling.silence_minutes`` (by default, for as long as a first thing may take) is killed, and Ray starts it anew.

    Args:
        function: picklable; called again from its start where its process dies.
        calls: arguments of each.
        homes: for each the folders that it writes to, seen by all nodes.
        scaling: what each asks for, how often it may fail, and how long it may be silent.
        say: told when one is killed.

    Raises:
        RunFailed: one was silent more often than it may fail.
        ray.exceptions.RayError: one failed in another way.
    """
    limit = FIRST_S if scaling.silence_minutes is None else scaling.silence_minutes * 60
    remote = remote_like_worker(_begin, scaling).options(num_returns="streaming")
    watches: dict[Any, _Watch] = {}
    for arguments, folders in zip(calls, homes, strict=True):
        watch = _Watch(folders, limit, log)
        watches[remote.remote(function, str(watch.process), arguments)] = watch
    looked = time.monotonic()
    while watches:
        ready, _ = ray.wait(list(watches), num_returns=1, timeout=_LOOK_S)
        for each in ready:
            watch = watches.pop(each)
            try:
                value = ray.get(next(each))
            except StopIteration:
                watch.process.unlink(missing_ok=True)
                continue
            except ray.exceptions.RayTaskError:
                raise
            except ray.exceptions.RayError as error:
                if watch.kills:
                    raise RunFailed(f"{watch.silence}, {watch.kills} times") from error
                raise
            watches[each] = watch
            watch.sign()
            yield value
        if time.monotonic() - looked >= _LOOK_S:
            looked = time.monotonic()
            for watch in watches.values():
                watch.look()


class _Watch:
    """What is known of one task's signs of life."""

    def __init__(self, folders: Sequence[Path], limit: float, log: Say) -> None:
        self._folders, self._limit, self._say = folders, limit, log
        folders[0].mkdir(parents=True, exist_ok=True)
        self.process = folders[0] / _PROCESS  # which process it is
        self.process.unlink(missing_ok=True)
        self._stamp: float | None = None
        self._since = time.monotonic()
        self.kills = 0

    @property
    def silence(self) -> str:
        """What is said of it once it is killed."""
        return f"no sign of life for {self._limit / 60:.3g} min from the process at work in {self._folders[0]}"

    def sign(self) -> None:
        """Note a sign of life."""
        self._since = time.monotonic()

    def look(self) -> None:
        """Look for a sign in the files, and end the process that has given none in time."""
        if not self.process.exists():
            return self.sign()  # it has not begun: it may wait for a place
        stamp = max(_newest(folder) for folder in self._folders)
        if stamp != self._stamp:  # compared with itself, since clocks of nodes differ
            self._stamp = stamp
            return self.sign()
        if time.monotonic() - self._since > self._limit:
            self.kills += 1
            self._say(f"{self.silence}; it is ended, and started anew where scaling.max_failures allows")
            place = read_json(self.process, dict)
            self.process.unlink()
            there = NodeAffinitySchedulingStrategy(place["node"], soft=False)
            kill = ray.remote(num_cpus=0, scheduling_strategy=there, max_retries=0)(_kill)
            with suppress(ray.exceptions.RayError):  # its node is gone, as Ray will find too
                ray.get(kill.remote(place["pid"]), timeout=_KILL_S)


def _newest(home: Path) -> float:
    """Return when a file in a folder was last written to."""
    newest = 0.0
    for file in home.rglob("*"):
        with suppress(OSError):  # renamed meanwhile
            newest = max(newest, file.stat().st_mtime)
    return newest


def _begin(function: Callable[..., Iterator[Any]], process: str, arguments: tuple[Any, ...]) -> Iterator[Any]:
    write_json(Path(process), {"node": ray.get_runtime_context().get_node_id(), "pid": os.getpid()})
    yield from function(*arguments)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)  # a stopped process too, which answers nobody
