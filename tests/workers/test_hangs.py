"""Workers that hang: it is seen, said with where they are, and ended; what they did before is kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import on_workers
import pytest
from ground import Ground, Jobs, comparable, scaling

from mft_ray.errors import GivenUp, RunFailed
from mft_ray.training.job import Evaluation, Restart, TrainJob
from mft_ray.workers.group import workers
from mft_ray.workers.launch import launch

pytestmark = pytest.mark.slow
Make = Callable[..., TrainJob]
SILENCE = 0.1  # minutes


def hang(tmp_path: Path, step: int, **how: bool | int) -> on_workers.Hang:
    marker = tmp_path / "marker"
    marker.touch()
    return on_workers.Hang(step, str(marker), **how)  # type: ignore[arg-type]


@pytest.mark.parametrize(("count", "rank"), [(1, 0), (2, 1)])
def test_a_hanging_group_is_started_anew_and_says_where_it_was(
    jobs: Jobs, mft_job: Make, tmp_path: Path, count: int, rank: int
) -> None:
    job = mft_job(f"hangs-{count}", scaling(count, max_failures=1, silence_minutes=SILENCE))
    heard: list[object] = []
    outcome = launch(job, hang(tmp_path, 10, rank=rank), heard.append)
    [reason] = [event.reason for event in heard if isinstance(event, Restart)]
    assert reason.startswith("no sign of life: worker 0 ")
    assert "stand_still (on_workers.py:" in reason
    assert f"worker {rank} " in reason
    assert reason.count(" min now, ") == count
    stacks = Path(job.out) / "stacks.txt"
    assert reason.endswith(f"; the stacks are in {stacks}")
    assert "in stand_still" in stacks.read_text()
    assert "\n" not in reason
    steps = [event.step for event in heard if isinstance(event, Evaluation)]
    assert steps == [0, 5, 10, 15, 20]  # step 10 was told once, and done twice
    expected = launch(jobs["mft-z0w1" if count == 1 else "mft-z0w2"])
    assert comparable(outcome) == comparable(expected)


def test_a_process_that_stands_still_gives_no_stack_and_is_ended_all_the_same(
    jobs: Jobs, mft_job: Make, tmp_path: Path
) -> None:
    job = mft_job("stopped", scaling(max_failures=0, silence_minutes=SILENCE))
    began = time.monotonic()
    with pytest.raises(RunFailed, match=r"no sign of life: worker 0 .*gave no stack: it, or its node, stands still"):
        launch(job, hang(tmp_path, 10, stopped=True))
    assert time.monotonic() - began < 100
    assert comparable(launch(job)) == comparable(launch(jobs["mft-z0w1"]))


def test_a_job_is_given_up_whatever_its_workers_do_and_the_next_one_is_done(
    ground: Ground, jobs: Jobs, mft_job: Make, tmp_path: Path
) -> None:
    with workers(scaling(), tmp_path / "group") as group:
        group.submit(mft_job("given-up", scaling()), hang(tmp_path, 5))
        events = [group.next(), group.next()]
        assert [event.step for event in events if isinstance(event, Evaluation)] == [0, 5]
        began = time.monotonic()
        with pytest.raises(GivenUp):
            group.next(lambda: time.monotonic() - began > 3)
        assert time.monotonic() - began < 30
        assert comparable(group.train(mft_job("next", scaling()))) == comparable(launch(jobs["mft-z0w1"]))
