"""What befalls a job on a worker: no memory, no disk, damaged checkpoints. The group lives on, and so does the job."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import on_workers
import pytest
from ground import Ground, Jobs, comparable, scaling

from mft_ray.data.store import open_split
from mft_ray.errors import RunFailed
from mft_ray.training.job import Outcome, Restart, TrainJob
from mft_ray.workers.group import WorkerGroup, workers
from mft_ray.workers.launch import launch

pytestmark = pytest.mark.slow
Make = Callable[..., TrainJob]


@pytest.fixture(scope="module")
def group(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerGroup]:
    """One group for all faults: it has to survive them."""
    with workers(scaling(), tmp_path_factory.mktemp("group")) as group:
        yield group


def checkpoints(job: TrainJob) -> list[str]:
    return sorted(path.name for path in (Path(job.out) / "checkpoints").iterdir())


def test_no_disk_for_a_checkpoint(group: WorkerGroup, jobs: Jobs, mft_job: Make) -> None:
    job = mft_job("full", scaling())
    with pytest.raises(RunFailed) as caught:
        group.train(job, on_workers.LimitFiles(10))
    folder = Path(job.out) / "checkpoints"
    assert str(caught.value).startswith(f"the checkpoint of step 10 cannot be written to {folder}: ")
    assert "\n" not in str(caught.value)
    # Nothing half-written, and what was there is still there.
    assert checkpoints(job) == ["step-00000005"]
    assert comparable(group.train(job)) == comparable(launch(jobs["mft-z0w1"]))


def test_no_memory(group: WorkerGroup, jobs: Jobs, mft_job: Make) -> None:
    job = mft_job("memory", scaling())
    heard: list[object] = []
    with pytest.raises(RunFailed, match=r"out of memory with one example at a time: .*can't allocate memory") as caught:
        group.train(job, on_workers.LimitMemory(10), heard.append)
    assert "\n" not in str(caught.value)
    assert "scaling.gradient_checkpointing" in str(caught.value)
    assert sizes_in(heard) == [count * longest(job) for count in (8, 4, 2, 1)]
    assert comparable(group.train(job)) == comparable(launch(jobs["mft-z0w1"]))


def sizes_in(heard: list[object]) -> list[int]:
    """Micro-batches that a job was started anew with."""
    restarts = [event.reason for event in heard if isinstance(event, Restart)]
    found = [re.search(r"micro-batches of at most ([\d,]+) instead", reason) for reason in restarts]
    return [int(match[1].replace(",", "")) for match in found if match]


def longest(job: TrainJob) -> int:
    return max(len(row["input_ids"]) for row in open_split(Path(job.data), "train"))


def assert_alike(found: Outcome, expected: Outcome) -> None:
    assert [row.step for row in found.history] == [row.step for row in expected.history]
    assert [row.tokens for row in found.history] == [row.tokens for row in expected.history]
    for name in ("score", "loss"):
        values = [[getattr(row, name) for row in outcome.history] for outcome in (found, expected)]
        assert values[0] == pytest.approx(values[1], abs=1e-4, nan_ok=True)


def test_out_of_memory_halves_the_micro_batch_and_changes_no_result(jobs: Jobs, mft_job: Make, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    marker.touch()
    heard: list[object] = []
    tokens = longest(jobs["mft-z0w1"])
    rule, whole = on_workers.TooMany(4 * tokens, str(marker)), launch(jobs["mft-z0w1"])
    # A group of its own: it remembers what worked, and other sizes differ in the last bits.
    with workers(scaling(), tmp_path / "group") as group:
        assert_alike(group.train(mft_job("halved", scaling()), rule, heard.append), whole)
        assert sizes_in(heard) == [8 * tokens, 4 * tokens]
        heard.clear()
        assert_alike(group.train(mft_job("halved-next", scaling()), rule, heard.append), whole)
        assert sizes_in(heard) == []


def test_out_of_memory_on_one_of_two_workers(jobs: Jobs, mft_job: Make, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    marker.touch()
    heard: list[object] = []
    job = mft_job("halved-z2w2", scaling(2, 2))  # no failure is allowed, and this is none
    tokens = longest(job)
    outcome = launch(job, on_workers.TooMany(4 * tokens, str(marker), rank=1), heard.append)
    assert_alike(outcome, launch(jobs["mft-z2w2"]))
    assert sizes_in(heard) == [4 * tokens]


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
def test_a_damaged_checkpoint_is_passed_over(
    group: WorkerGroup, jobs: Jobs, mft_job: Make, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    if "cut" not in jobs:
        jobs["cut"] = mft_job("cut", scaling())
        with pytest.raises(RunFailed, match="interrupted at step 15"):
            group.train(jobs["cut"], on_workers.RaiseAt(15))
    assert checkpoints(jobs["cut"]) == ["step-00000005", "step-00000010"]
    job = mft_job(f"damaged-{damage.__name__}", scaling())
    shutil.copytree(jobs["cut"].out, job.out, dirs_exist_ok=True)
    for file in (Path(job.out) / "checkpoints" / "step-00000010").rglob("*model_states.pt"):
        damage(file)
    note = on_workers.NoteSteps(str(tmp_path / "steps"))
    assert comparable(group.train(job, note)) == comparable(launch(jobs["mft-z0w1"]))
    assert note.steps() == [10, 15, 20]


def test_without_a_sound_checkpoint_a_job_begins_anew(
    group: WorkerGroup, jobs: Jobs, mft_job: Make, tmp_path: Path
) -> None:
    job = mft_job("anew", scaling())
    for step in (5, 10):
        folder = Path(job.out) / "checkpoints" / f"step-{step:08d}" / "engine"
        folder.mkdir(parents=True)
        (folder / "mp_rank_00_model_states.pt").write_bytes(b"no checkpoint")
    note = on_workers.NoteSteps(str(tmp_path / "steps"))
    assert comparable(group.train(job, note)) == comparable(launch(jobs["mft-z0w1"]))
    assert note.steps() == [5, 10, 15, 20]
