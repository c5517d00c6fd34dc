"""Worker groups that outlive their jobs, on real Ray Train and DeepSpeed."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.cloudpickle
import torch
from ground import EVALUATION, MASK, Ground, Jobs, comparable, scaling
from ray.util.state import list_actors, list_placement_groups

from mft_ray.data.store import open_split
from mft_ray.errors import RunFailed
from mft_ray.evaluation.generation import generate
from mft_ray.masking import load_mask
from mft_ray.models.loading import load_model, load_tokenizer
from mft_ray.training.job import Evaluation, GenerateJob, Outcome, Restart, TrainJob
from mft_ray.training.memory import kills, most_used
from mft_ray.workers.group import WorkerGroup, kernel_killed
from mft_ray.workers.job_queue import Progress, RecyclePolicy
from mft_ray.workers.launch import launch

pytestmark = pytest.mark.slow
Make = Callable[..., TrainJob]
Start = Callable[..., WorkerGroup]


@dataclass(frozen=True)
class NoteProcess:
    """A stop rule that only notes which process asks, and how much memory that occupies."""

    path: str

    def __call__(self, history: Sequence[Evaluation], total_steps: int) -> str | None:
        if torch.distributed.get_rank() == 0:
            pages = Path("/proc/self/statm").read_text().split()[1]
            Path(self.path).write_text(f"{os.getpid()} {pages}")
        return None

    def process(self) -> int:
        return int(Path(self.path).read_text().split()[0])

    def megabytes(self) -> float:
        return int(Path(self.path).read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.fixture(scope="module", autouse=True)
def _by_value(ray_cluster: None) -> None:
    import sys

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def start(ground: Ground, tmp_path: Path) -> Iterator[Start]:
    """Start groups, and end them with the test."""
    groups: list[WorkerGroup] = []

    def make(recycle: RecyclePolicy | None = None, **scale: Any) -> WorkerGroup:
        groups.append(WorkerGroup(scaling(**scale), tmp_path / f"group-{len(groups)}", recycle))
        return groups[-1]

    yield make
    for group in groups:
        began = time.monotonic()
        group.close()
        print(f"closed in {time.monotonic() - began:.1f} s")


def masks_equal(one: TrainJob, other: TrainJob) -> bool:
    masks, others = (load_mask(Path(job.out) / "mask.safetensors").masks for job in (one, other))
    return masks.keys() == others.keys() and all(masks[name].equal(others[name]) for name in masks)


@pytest.mark.parametrize("zero", [0, 3])
def test_a_warm_job_gives_what_a_fresh_one_gives_bit_for_bit(
    zero: int, ground: Ground, mft_job: Make, start: Start, tmp_path: Path
) -> None:
    # A backbone of its own, taken away after the first job: the second must have it in memory (not at ZeRO-3,
    # which leaves it in pieces).
    backbone = shutil.copytree(ground.backbone, tmp_path / "backbone")
    note = NoteProcess(str(tmp_path / "note"))
    other = dataclasses.replace(MASK, layers="0", init="normal")
    jobs = [
        dataclasses.replace(mft_job(f"warm{zero}-{place}", scaling(2, zero), mask), model=str(backbone))
        for place, mask in (("first", MASK), ("other", other), ("again", MASK))
    ]
    group = start(workers=2, zero=zero)
    processes, outcomes = [], []
    for job in jobs:
        outcomes.append(group.train(job, note))
        processes.append(note.process())
        if zero < 3:
            shutil.rmtree(backbone, ignore_errors=True)
    assert len(set(processes)) == 1
    assert comparable(outcomes[0]) == comparable(outcomes[2]) != comparable(outcomes[1])
    assert masks_equal(jobs[0], jobs[2])


def answers(job: TrainJob, examples: tuple[int, ...]) -> list[str]:
    model, tokenizer = load_model(job.model), load_tokenizer(job.model)
    rows = [open_split(Path(job.data), "validation")[index] for index in examples]
    texts = dict(generate(model, tokenizer, [row["prompt_ids"] for row in rows], max_new_tokens=8))
    return [texts[index].text for index in range(len(rows))]


def test_jobs_of_every_kind_follow_one_another(fft_job: Make, mft_job: Make, start: Start, tmp_path: Path) -> None:
    """A job that diverges, one that is broken off, FFT, texts: the group serves on, in the same process."""
    note = NoteProcess(str(tmp_path / "note"))
    group = start()
    whole = mft_job("kinds-whole", scaling())
    expected = comparable(group.train(whole, note))
    process = note.process()
    with pytest.raises(RunFailed, match=r"not finite at step 10.*lower than 1e\+30"):
        group.train(fft_job("kinds-diverged", scaling(), lr=1e30), note)
    fft = fft_job("kinds-fft", scaling(), steps=10_000)
    group.submit(fft, note)
    first = group.next()
    assert isinstance(first, Evaluation)
    assert first.step == 0
    group.cancel()
    cancelled = Outcome.load(Path(fft.out) / "outcome.json")
    assert cancelled.stopped_reason == "cancelled"
    assert cancelled.history[-1].step < 10_000
    said = GenerateJob(
        whole.model, whole.data, "validation", "exact_match", EVALUATION, scaling(), 2, examples=(3, 0, 5)
    )
    assert group.answer(said) == answers(whole, said.examples)
    again = mft_job("kinds-again", scaling())
    assert comparable(group.train(again, note)) == expected
    assert note.process() == process
    assert masks_equal(whole, again)


def test_a_group_makes_way_for_a_fresh_one(mft_job: Make, start: Start, tmp_path: Path) -> None:
    note = NoteProcess(str(tmp_path / "note"))
    group = start(RecyclePolicy(jobs=2))
    processes = []
    for number in range(3):
        group.train(mft_job(f"renewed-{number}", scaling(), steps=2, eval_every=2), note)
        processes.append(note.process())
    assert processes[0] == processes[1] != processes[2]


def test_memory_is_flat_over_thirty_jobs(mft_job: Make, start: Start, tmp_path: Path) -> None:
    note = NoteProcess(str(tmp_path / "note"))
    group = start()
    occupied, began = [], time.monotonic()
    for number in range(30):
        group.train(mft_job(f"flat-{number}", scaling(), steps=2, eval_every=2), note)
        occupied.append(note.megabytes())
    print(f"{time.monotonic() - began:.1f} s", [round(value) for value in occupied])
    early, late = statistics.median(occupied[5:10]), statistics.median(occupied[-5:])
    assert late - early < 20, occupied


def alive() -> set[str]:
    """Actors and placement groups of the cluster."""
    # By default 100 are listed, and the dead ones of earlier tests count.
    actors = list_actors(limit=10_000, filters=[("state", "!=", "DEAD")])
    groups = list_placement_groups(limit=10_000)
    return {f"{actor.class_name} {actor.actor_id}" for actor in actors} | {
        group.placement_group_id for group in groups if group.state != "REMOVED"
    }


def test_nothing_is_left_of_a_closed_group(mft_job: Make, ground: Ground, tmp_path: Path) -> None:
    before = alive()
    group = WorkerGroup(scaling(), tmp_path / "group")
    group.train(mft_job("closed", scaling(), steps=2, eval_every=2))
    assert len(alive() - before) > 3  # the desk, the controller, the worker and its place
    group.close()
    deadline = time.monotonic() + 30
    # Ray Train's coordinator is one for all groups, and stays with the cluster.
    while left := {name for name in alive() - before if not name.startswith("_AutoscalingCoordinatorActor")}:
        assert time.monotonic() < deadline, left
        time.sleep(0.5)


def test_the_kernel_of_each_workers_node_is_asked_whether_it_killed() -> None:
    """Ray only knows that a worker is gone, and its node need not be the controller's."""
    [here] = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    assert kernel_killed({here: kills()}) == (False, None)
    assert kernel_killed({here: kills() - 1}) == (True, most_used())
    assert kernel_killed({}) == (False, None)
    gone = "0" * len(here)
    began = time.monotonic()
    assert kernel_killed({gone: 0, here: kills() - 1}) == (True, most_used())
    assert kernel_killed({gone: 0}) == (False, None)
    assert time.monotonic() - began < 40


def test_a_job_survives_the_process_that_hands_jobs_out(mft_job: Make, jobs: Jobs, start: Start) -> None:
    group = start(max_failures=1)
    reasons: list[str] = []

    def heard(event: object) -> None:
        if isinstance(event, Evaluation) and event.step == 10 and not reasons:
            kill_queue(group)
        if isinstance(event, Restart):
            reasons.append(event.reason)

    outcome = group.train(mft_job("queue-killed", scaling()), heard=heard)
    assert comparable(outcome) == comparable(launch(jobs["mft-z0w1"]))
    [reason] = reasons
    assert reason.startswith("the process that workers get their jobs from is gone: ")
    assert "\n" not in reason


def test_without_that_process_a_job_that_may_not_fail_fails_and_the_next_gets_another(
    mft_job: Make, start: Start
) -> None:
    group = start()
    group.submit(mft_job("queue-lost", scaling()))
    assert isinstance(group.next(), Evaluation)
    kill_queue(group)
    with pytest.raises(RunFailed, match="the process that workers get their jobs from is gone") as caught:
        to_end(group)
    assert "\n" not in str(caught.value)
    kept = group.train(mft_job("queue-next", scaling()))
    assert kept.stopped_reason == "completed"
    kill_queue(group)  # with no job at hand, and then at the end of the group
    assert group.train(mft_job("queue-after", scaling())).stopped_reason == "completed"
    kill_queue(group)


def to_end(group: WorkerGroup) -> None:
    while isinstance(group.next(), Progress):
        pass


def kill_queue(group: WorkerGroup) -> None:
    [queue] = [each for each in list_actors() if each.class_name == "JobQueue" and each.state == "ALIVE"]
    os.kill(queue.pid, signal.SIGKILL)
