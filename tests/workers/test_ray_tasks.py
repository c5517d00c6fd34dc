"""Ray tasks in workers' clothes: what they yield, and what becomes of one that gives no sign of life."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray.cloudpickle

from mft_ray.config import ScalingConfig
from mft_ray.errors import RunFailed
from mft_ray.workers.tasks import stream

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def by_value(ray_cluster: None) -> None:
    ray.cloudpickle.register_pickle_by_value(__import__(__name__))  # workers cannot import this file


def count(name: str, home: str) -> Iterator[str]:
    for number in range(3):
        yield f"{name} {number} in {os.getpid()}"


def hang_once(name: str, home: str) -> Iterator[str]:
    """Be stopped the first time, as by a machine that swaps, and write a file now and then the second time."""
    yield "begins"
    first = Path(home) / "first"
    if not first.exists():
        first.touch()
        os.kill(os.getpid(), signal.SIGSTOP)
    for number in range(6):
        time.sleep(0.7)  # all of it together is longer than the limit
        (Path(home) / "sign").write_text(str(number))
    yield "went on"


def hang(name: str, home: str) -> Iterator[str]:
    yield "begins"
    time.sleep(3600)


def test_all_that_tasks_yield_comes(tmp_path: Path) -> None:
    homes = [tmp_path / name for name in ("a", "b")]
    said = list(stream(count, [(home.name, str(home)) for home in homes], [[home] for home in homes], few(), print))
    assert sorted(line[:3] for line in said) == ["a 0", "a 1", "a 2", "b 0", "b 1", "b 2"]
    assert len({line.split()[-1] for line in said}) == 2
    assert [path for home in homes for path in home.iterdir()] == []  # nothing of a task outlives it


def test_a_stopped_task_is_killed_and_begun_again(tmp_path: Path) -> None:
    told: list[str] = []
    said = list(stream(hang_once, [("a", str(tmp_path))], [[tmp_path]], few(), told.append))
    assert said == ["begins", "went on"]
    assert len(told) == 1
    assert f"no sign of life for 0.05 min from the process at work in {tmp_path}" in told[0]


def test_one_that_always_hangs_is_given_up(tmp_path: Path) -> None:
    told: list[str] = []
    began = time.monotonic()
    with pytest.raises(RunFailed, match=r"no sign of life for 0\.05 min .*, 2 times"):
        list(stream(hang, [("a", str(tmp_path))], [[tmp_path]], few(), told.append))
    assert len(told) == 2
    assert time.monotonic() - began < 60


def few() -> ScalingConfig:
    return ScalingConfig(max_failures=1, silence_minutes=0.05)
