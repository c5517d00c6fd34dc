"""Runs that end early, badly or twice, through the launcher that the search uses."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import on_workers
import pytest
from conftest import MASK, Ground, file_hashes, scaling

from mft_ray.masking import load_mask
from mft_ray.training.job import Outcome, TrainJob
from mft_ray.training.launch import launch

pytestmark = pytest.mark.slow
Make = Callable[..., TrainJob]


@pytest.fixture(scope="module")
def whole(mft_job: Make) -> TrainJob:
    """A run that nothing interrupts."""
    job = mft_job("whole", scaling())
    launch(job)
    return job


def rows(outcome: Outcome) -> list[dict[str, Any]]:
    """Return a history without what no two runs share."""
    return [{**asdict(row), "seconds": 0, "loss": str(row.loss)} for row in outcome.history]


def test_an_interrupted_run_goes_on_to_the_same_end(whole: TrainJob, mft_job: Make, ground: Ground) -> None:
    job = mft_job("interrupted", scaling())
    with pytest.raises(RuntimeError, match="InterruptedError: interrupted at step 10"):
        launch(job, on_workers.RaiseAt(10))
    assert [path.name for path in (Path(job.out) / "checkpoints").iterdir()] == ["step-00000005"]
    assert not (Path(job.out) / "outcome.json").exists()
    resumed = launch(job)
    expected = launch(whole)  # done already: read, not repeated
    assert rows(resumed) == rows(expected)
    assert resumed.stopped_reason == expected.stopped_reason == "completed"
    assert resumed.history[-1].seconds >= resumed.history[1].seconds > 0
    found, masks = (load_mask(Path(each.out) / "mask.safetensors") for each in (job, whole))
    assert (found.settings, found.backbone) == (masks.settings, ground.fingerprint)
    assert found.settings == MASK
    assert all(found.masks[name].equal(mask) for name, mask in masks.masks.items())
    assert not (Path(job.out) / "checkpoints").exists()
    assert file_hashes(ground.backbone) == ground.files


def test_a_finished_run_is_not_repeated(whole: TrainJob) -> None:
    before = file_hashes(whole.out)
    started = time.monotonic()
    outcome = launch(whole, on_workers.RaiseAt(0))
    assert time.monotonic() - started < 1
    assert outcome == Outcome.load(Path(whole.out) / "outcome.json") or outcome.best is not None
    assert file_hashes(whole.out) == before


def test_a_killed_worker_is_replaced(whole: TrainJob, mft_job: Make, tmp_path: Path) -> None:
    job = mft_job("killed", scaling(2, 2, max_failures=1))
    marker = tmp_path / "killed"
    outcome = launch(job, on_workers.KillOnce(10, str(marker)))
    assert marker.exists()
    assert outcome.stopped_reason == "completed"
    expected = launch(whole)
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
