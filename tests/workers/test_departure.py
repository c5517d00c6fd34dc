"""How often workers ask each other whether to leave a job; that they leave at the same step: `tests/hosts`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch.distributed as dist

import mft_ray.workers.departure as departure_module
from mft_ray.workers.departure import Departure


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(("seconds", "steps", "times"), [(0.125, 81, 11), (3.0, 20, 20), (0.0, 2001, 3)])
def test_workers_ask_each_other_about_once_a_second(
    alone: None, monkeypatch: pytest.MonkeyPatch, seconds: float, steps: int, times: int
) -> None:
    now, asked = [1000.0], list[float]()
    monkeypatch.setattr(departure_module.time, "monotonic", lambda: now[0])

    def ask() -> bool:
        asked.append(now[0])
        return False

    leave = Departure(ask, "cpu")
    for _ in range(steps):
        now[0] += seconds
        assert not leave()
    assert len(asked) == times


def test_a_worker_that_is_to_leave_leaves_when_they_have_asked(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    now, told = [1000.0], [False]
    monkeypatch.setattr(departure_module.time, "monotonic", lambda: now[0])
    leave = Departure(lambda: told[0], "cpu")
    said = []
    for step in range(1, 12):
        now[0] += 0.25
        told[0] = step >= 3
        said.append(leave())
    assert said.index(True) + 1 == 5  # after the first step, and then every fourth
