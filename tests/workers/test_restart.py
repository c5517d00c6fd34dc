"""Runs that end early, badly or twice, through the launcher that the search uses."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import on_workers
import pytest
import ray.train
from ground import MASK, Ground, Jobs, comparable, file_hashes, scaling

from mft_ray.errors import RunFailed, UserError
from mft_ray.masking import load_mask
from mft_ray.training.job import TrainJob
from mft_ray.workers.failures import root_cause
from mft_ray.workers.launch import launch

pytestmark = pytest.mark.slow
Make = Callable[..., TrainJob]


def test_an_interrupted_run_goes_on_to_the_same_end(jobs: Jobs, mft_job: Make, ground: Ground) -> None:
    job = mft_job("interrupted", scaling())
    with pytest.raises(RunFailed, match="interrupted at step 10") as caught:
        launch(job, on_workers.RaiseAt(10))
    trace = Path(job.out) / "traceback.txt"
    assert caught.value.told.endswith(f"(traceback: {trace})")
    assert 'on_workers.py", line' in trace.read_text()  # the worker's, not that of who waits for it
    assert "raise InterruptedError" in trace.read_text()
    assert [path.name for path in (Path(job.out) / "checkpoints").iterdir()] == ["step-00000005"]
    assert not (Path(job.out) / "outcome.json").exists()
    resumed, whole = launch(job), jobs["mft-z0w1"]
    expected = launch(whole)  # done already: read, not repeated
    assert comparable(resumed) == comparable(expected)
    assert resumed.stopped_reason == expected.stopped_reason == "completed"
    assert resumed.history[-1].seconds >= resumed.history[1].seconds > 0
    found, masks = (load_mask(Path(each.out) / "mask.safetensors") for each in (job, whole))
    assert (found.settings, found.backbone) == (masks.settings, ground.fingerprint)
    assert found.settings == MASK
    assert all(found.masks[name].equal(mask) for name, mask in masks.masks.items())
    assert not (Path(job.out) / "checkpoints").exists()
    assert not trace.exists()
    assert file_hashes(ground.backbone) == ground.files


def test_a_finished_run_is_not_repeated(jobs: Jobs) -> None:
    whole = jobs["mft-z0w1"]
    before = file_hashes(whole.out)
    started = time.monotonic()
    outcome = launch(whole, on_workers.RaiseAt(0))
    assert time.monotonic() - started < 1
    assert outcome.history[-1].step == 20
    assert file_hashes(whole.out) == before


def test_a_killed_worker_is_replaced(jobs: Jobs, mft_job: Make, tmp_path: Path) -> None:
    job = mft_job("killed", scaling(2, 2, max_failures=1))
    marker = tmp_path / "killed"
    outcome = launch(job, on_workers.KillOnce(10, str(marker)))
    assert marker.exists()
    assert outcome.stopped_reason == "completed"
    expected = launch(jobs["mft-z2w2"])
    assert [row.step for row in outcome.history] == [0, 5, 10, 15, 20]
    assert [row.score for row in outcome.history] == pytest.approx([row.score for row in expected.history], abs=1e-4)
    progress = json.loads((Path(job.out) / "progress.json").read_text())
    assert (progress["step"], progress["steps"]) == (20, 20)


def test_a_loss_that_is_not_finite_is_said_plainly(fft_job: Make) -> None:
    job = fft_job("diverged", scaling(), lr=1e30)
    with pytest.raises(RuntimeError) as caught:
        launch(job)
    message = str(caught.value)
    assert "the loss or score is not finite at step 10" in message
    assert "a learning rate lower than 1e+30 may help" in message
    assert "\n" not in message
    assert not (Path(job.out) / "outcome.json").exists()


def test_a_worker_that_dies_for_good_is_said_plainly(mft_job: Make, tmp_path: Path) -> None:
    with pytest.raises(RunFailed) as caught:
        launch(mft_job("dead", scaling(2, 0)), on_workers.KillOnce(5, str(tmp_path / "dead"), rank=1))
    # Either Ray or the other worker notices first.
    assert re.search("worker process has died|lost contact with another one", str(caught.value))
    assert "\n" not in str(caught.value)
    assert not caught.value.raised


def test_the_reason_is_the_failing_workers_own() -> None:
    # Which failures Ray Train collects is a matter of milliseconds, so they are put together here.
    lost = RuntimeError("[pair.cc:537] Connection closed by peer [127.0.0.1]:4")
    for own, message in (
        (FloatingPointError("the loss is not finite"), "the loss is not finite"),
        (KeyError("id"), "KeyError: 'id'"),
        (UserError("There is no model."), "There is no model."),
        (MemoryError(), "MemoryError"),
    ):
        assert root_cause(ray.train.WorkerGroupError("all", {0: lost, 1: own})) == message
    alone = root_cause(ray.train.WorkerGroupError("all", {0: lost}))
    assert alone.startswith("a worker lost contact with another one")
    assert "\n" not in alone
