"""The queue by itself, without Ray: who gets which job, and what the driver hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import pytest

import mft_ray.workers.job_queue as desk_module
from mft_ray.config import EvaluationConfig, ScalingConfig, TrainConfig
from mft_ray.training.job import Evaluation, Left, Outcome, Restart, ScoreJob, Scores, Sizes, TrainJob
from mft_ray.workers.job_queue import Failure, JobQueue, RecyclePolicy, Task

JOB = TrainJob("fft", "model", "data", "out", TrainConfig(), EvaluationConfig(), ScalingConfig())


def evaluation(step: int) -> Evaluation:
    return Evaluation(step, 0.5, 0.1, 10, 1.0, 0.3, 0.0, True)


def outcome(step: int = 10) -> Outcome:
    return Outcome("completed", [evaluation(step)], 0)


def queue(workers: int = 1, max_failures: int = 0, recycle: RecyclePolicy | None = None) -> JobQueue:
    return JobQueue(workers, max_failures, recycle or RecyclePolicy())


async def waits(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Start something that must not end yet."""
    task = asyncio.ensure_future(coroutine)
    await asyncio.sleep(0.01)
    assert not task.done()
    return task


async def taken(place: JobQueue, after: int = 0) -> Task:
    task = await asyncio.wait_for(place.take(after), 1)
    assert task is not None
    return task


def test_a_job_goes_to_every_worker_and_its_events_to_the_driver_in_order() -> None:
    async def story() -> None:
        place = queue(workers=2)
        early = await waits(place.take(0))
        await place.submit(JOB, None)
        first, second = await early, await taken(place)
        assert first is second
        assert (first.number, first.job) == (1, JOB)
        for step in (0, 5):
            assert [await place.report(first, evaluation(step)) for _ in range(2)] == [False, False]
        await place.finish(0, outcome(), 1e9)
        assert [(await place.event()) for _ in range(2)] == [evaluation(0), evaluation(5)]
        end = await waits(place.event())  # the other worker is not done
        await place.finish(1, outcome(), 1e9)
        assert await end == outcome()

    asyncio.run(story())


def test_workers_wait_for_the_next_job() -> None:
    async def story() -> None:
        place = queue()
        await place.submit(JOB, None)
        await taken(place)
        await place.finish(0, outcome(), 0)
        await place.event()
        later = await waits(place.take(1))
        anew = await waits(place.take(0))  # a worker that was started again does not repeat what is settled
        await place.submit(JOB, None)
        assert [(await task).number for task in (later, anew)] == [2, 2]

    asyncio.run(story())


def test_a_group_that_crashed_takes_its_job_again_until_it_has_failed_too_often() -> None:
    async def story() -> None:
        place = queue(workers=2, max_failures=1)
        await place.submit(JOB, None)
        await taken(place)
        await place.finish(0, outcome(), 0)
        await place.crashed("first")
        assert await place.event() == Restart("first")
        assert (await taken(place)).number == 1
        await place.finish(0, outcome(), 0)
        end = await waits(place.event())  # what was finished before the crash counts for nothing
        await place.crashed("second")
        assert await end == Failure("second")
        anew = await waits(place.take(0))
        await place.submit(JOB, None)
        assert (await anew).number == 2
        await place.crashed("third")  # each job has tries of its own
        assert (await taken(place)).number == 2

    asyncio.run(story())


SCORING = ScoreJob("model", "data", "test", "exact_match", EvaluationConfig(), ScalingConfig(), 64)


def test_out_of_memory_halves_the_micro_batch_and_is_no_failure() -> None:
    async def story() -> None:
        place = queue(workers=2, max_failures=0)
        await place.submit(JOB, None)
        assert (await taken(place)).limit is None
        for sizes in (Sizes(8, 64), Sizes(4, 16)):
            for _ in range(2):
                await place.sized(sizes)
            await place.crashed("killed", memory=True)
            half, quarter = sizes.training // 2, sizes.scoring // 4
            said = f"out of memory (killed): micro-batches of at most {half} instead of {2 * half} tokens"
            assert await place.event() == Restart(said)
            assert (await taken(place)).limit == Sizes(half, quarter)
        for rank in range(2):
            await place.finish(rank, outcome(), 0)
        assert await place.event() == outcome()
        await place.submit(JOB, None)
        assert (await taken(place, 1)).limit == Sizes(2, 4)  # what worked
        await place.submit(SCORING, None)
        assert (await taken(place, 2)).limit is None  # of this kind nothing is known

    asyncio.run(story())


def test_out_of_memory_with_one_example_fails_and_says_what_to_do() -> None:
    async def story() -> None:
        place = queue(max_failures=1)
        await place.submit(JOB, None)
        for sizes in (Sizes(2, 1), Sizes(1, 1)):
            await place.sized(sizes)
            await place.crashed("no room", memory=True)
            assert isinstance(await place.event(), Restart)
        await place.sized(Sizes(1, 1))
        await place.crashed("no room", memory=True)  # the restart that any failure has did not help
        end = await place.event()
        assert isinstance(end, Failure)
        assert end.reason.startswith("out of memory with one example at a time: no room. ")
        for word in ("max_length", "gradient_checkpointing", "bfloat16", "zero_stage"):
            assert word in end.reason
        await place.submit(JOB, None)
        assert (await taken(place, 1)).limit is None  # what failed is no guide

    asyncio.run(story())


def test_a_lone_worker_gets_a_smaller_task_without_a_crash() -> None:
    async def story() -> None:
        place = queue()
        await place.submit(SCORING, None)
        assert await place.too_many("while it was loaded") is None
        await place.sized(Sizes(1, 3))
        again = await place.too_many("no room")
        assert again is not None
        assert (again.number, again.job, again.limit) == (1, SCORING, Sizes(1, 1))
        said = "out of memory (no room): at most 1 instead of 3 examples scored at once"
        assert await place.event() == Restart(said)
        await place.sized(Sizes(1, 1))
        assert await place.too_many("no room") is None
        await place.finish(0, Scores([1.0]), 0)
        assert await place.event() == Scores([1.0])

    asyncio.run(story())


def test_a_crash_between_jobs_is_nobodys_failure() -> None:
    async def story() -> None:
        place = queue()
        await place.crashed("before any job")
        await place.submit(JOB, None)
        await taken(place)
        await place.finish(0, outcome(), 0)
        assert await place.event() == outcome()
        await place.crashed("after it")
        await waits(place.event())

    asyncio.run(story())


def test_an_evaluation_that_is_reported_again_is_told_once() -> None:
    async def story() -> None:
        place = queue(max_failures=1)
        await place.submit(JOB, None)
        task = await taken(place)
        await place.report(task, evaluation(5))
        await place.crashed("killed")
        await place.report(await taken(place), evaluation(5))
        assert [await place.event() for _ in range(2)] == [evaluation(5), Restart("killed")]
        await waits(place.event())

    asyncio.run(story())


def test_to_break_off_is_told_to_all_workers_at_the_same_evaluation() -> None:
    async def story() -> None:
        place = queue(workers=2)
        await place.submit(JOB, None)
        task = await taken(place)
        assert not await place.report(task, evaluation(5))
        await place.cancel()
        assert not await place.report(task, evaluation(5))  # the other worker was told to go on
        assert [await place.report(task, evaluation(10)) for _ in range(2)] == [True, True]
        for rank in range(2):
            await place.finish(rank, outcome(), 0)
        await place.submit(JOB, None)
        assert not await place.report(await taken(place, 1), evaluation(0))

    asyncio.run(story())


@pytest.mark.parametrize(
    ("recycle", "memory"),
    [(RecyclePolicy(jobs=2), [0.0, 0.0]), (RecyclePolicy(growth=5.0), [10.0, 16.0])],
    ids=["jobs", "memory"],
)
def test_workers_are_sent_home_in_time(recycle: RecyclePolicy, memory: list[float]) -> None:
    async def story() -> None:
        place = queue(workers=2, recycle=recycle)
        for number, occupied in enumerate(memory, start=1):
            await place.submit(JOB, None)
            assert not await place.renewing()
            for rank in range(2):
                assert (await taken(place, number - 1)).number == number
                await place.finish(rank, outcome(), occupied if rank else 0.0)
            await place.event()
        assert await place.renewing()
        assert await place.take(number) is None
        await place.reopen()
        await place.submit(JOB, None)
        assert (await taken(place)).number == number + 1
        for rank in range(2):
            await place.finish(rank, outcome(), 100.0)  # a fresh group's memory is its own
        assert not await place.renewing()

    asyncio.run(story())


def test_workers_that_are_sent_home_finish_their_job_first() -> None:
    async def story() -> None:
        place = queue()
        await place.submit(JOB, None)
        await place.send_home()
        assert (await taken(place)).number == 1
        await place.finish(0, outcome(), 0)
        assert await place.take(1) is None

    asyncio.run(story())


def test_workers_hang_when_none_of_those_at_the_job_gives_a_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(desk_module.time, "monotonic", lambda: now[0])

    async def story() -> None:
        place = queue(workers=2, max_failures=1)
        assert await place.overdue() == {}
        await place.submit(JOB, None)
        await place.alive(0, "trains", 300.0)
        await place.alive(1, "saves the best state", 1800.0)
        now[0] += 400
        assert await place.overdue() == {}  # the first may wait for the second
        await place.finish(1, outcome(), 1e9)
        assert {rank: sign.doing for rank, sign in (await place.overdue()).items()} == {0: "trains"}
        await place.hung("no sign of life")
        assert await place.overdue() == {}
        await place.crashed("the actor died unexpectedly")  # as Ray says of what was killed
        assert await place.event() == Restart("no sign of life")
        await place.alive(0, "trains", 300.0)
        await place.crashed("killed")
        assert await place.event() == Failure("killed")
        now[0] += 400
        assert await place.overdue() == {}  # there is no job

    asyncio.run(story())


NOTICE = "10.77.0.3 is going away, as was announced"


def test_workers_that_leave_a_node_which_goes_away_have_not_failed() -> None:
    async def story() -> None:
        place = queue(workers=2, max_failures=0)
        await place.leave(NOTICE)  # there is no job
        await place.submit(JOB, None)
        for rank, node in enumerate(("one", "other")):
            await place.placed("group", node, 0)
            assert await place.alive(rank, "trains", 300.0) is None
        assert await place.nodes() == {"one", "other"}
        await place.leave(NOTICE)
        assert [await place.alive(rank, "trains", 300.0) for rank in range(2)] == [1, 1]
        assert not await place.moved()
        for _ in range(2):
            await place.left(Left(37))
        assert await place.event() == Restart(f"{NOTICE}; its workers left at step 37")
        assert [await place.moved(), await place.moved()] == [True, False]
        assert await place.nodes() == set()
        assert (await taken(place)).number == 1
        assert await place.alive(0, "trains", 300.0) is None
        await place.crashed("killed")
        assert await place.event() == Failure("killed")

    asyncio.run(story())


def test_workers_that_go_down_with_a_node_that_said_so_have_not_failed_but_code_that_raises_has() -> None:
    async def story() -> None:
        place = queue(max_failures=0)
        await place.submit(JOB, None)
        await place.leave(NOTICE)
        await place.crashed("the node is gone")
        assert await place.event() == Restart(f"{NOTICE}, and the node is gone")
        await place.leave(NOTICE)
        await place.left(Left(5))
        await place.crashed("the node is gone")  # before all of its workers had ended
        assert await place.event() == Restart(f"{NOTICE}; its workers left at step 5")
        assert not await place.moved()  # Ray Train has started others already
        await place.leave(NOTICE)
        await place.crashed("KeyError: 'id'", traceback="Traceback ...", raised=True)
        assert await place.event() == Failure("KeyError: 'id'", traceback="Traceback ...", raised=True)

    asyncio.run(story())


def test_a_job_that_is_given_up_leaves_nothing_to_the_next() -> None:
    async def story() -> None:
        place = queue()
        await place.submit(JOB, None)
        task = await taken(place)
        await place.report(task, evaluation(0))
        await place.abandon()
        waiting = await waits(place.event())
        early = await waits(place.take(0))
        await place.submit(JOB, None)
        await place.crashed("killed")  # which may be known so late
        assert (await early).number == 2
        await place.finish(0, outcome(), 1e9)
        assert await waiting == outcome()

    asyncio.run(story())


def test_what_code_raised_comes_with_its_traceback_and_memory_is_no_such_thing() -> None:
    async def story() -> None:
        place = queue()
        await place.submit(JOB, None)
        await taken(place)
        await place.crashed("KeyError: 'id'", traceback="Traceback ...", raised=True)
        assert await place.event() == Failure("KeyError: 'id'", traceback="Traceback ...", raised=True)
        await place.submit(JOB, None)
        again = await taken(place, 1)
        assert await place.held() == 0
        await place.report(again, replace(evaluation(0), memory=5e9))
        assert await place.held() == 5e9
        await place.event()
        await place.crashed("no room", memory=True)
        failure = await place.event()
        assert isinstance(failure, Failure)
        assert not failure.raised

    asyncio.run(story())
