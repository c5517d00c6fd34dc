"""What a person reads while a job runs."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest

from mft_ray.config import EvaluationConfig
from mft_ray.config.params import describe
from mft_ray.runs.folder import RunFolder
from mft_ray.searches.progress import TrialProgress
from mft_ray.searches.space import PAPER
from mft_ray.training.job import Counted, Evaluation, Restart
from mft_ray.workers.progress import JobProgress

START = Evaluation(0, 0.25, 0.1, 0, 0.5, math.nan, 0.0, True)
LATER = Evaluation(10, 0.5, 0.1, 640, 20.0, 1.75, 0.1, True)


def test_a_run_says_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    lines = JobProgress("FFT", "exact_match", 40)
    for event in (START, LATER, Restart("a worker has died")):
        lines(event)
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.endswith("FFT: step 0 of at most 40, validation 25.00 %")
    assert second.endswith("FFT: step 10 of at most 40, validation 50.00 %, at most 1 min 00 s left")
    assert "FFT: a worker has died; it is started anew" in third


def test_a_mask_that_is_cut_once_has_no_steps(capsys: pytest.CaptureFixture[str]) -> None:
    JobProgress("l1_mask", "exact_match", 0)(START)
    assert capsys.readouterr().out.endswith("l1_mask: validation 25.00 %\n")


def test_scoring_says_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    JobProgress("mft on test", "exact_match", None)(Counted(50, 1000))
    assert "mft on test: 50 of 1,000 examples, about" in capsys.readouterr().out


def test_a_configuration_is_one_line() -> None:
    assert describe({**PAPER, "layers": "4-7"}) == (
        "ratio 0.100, lr 2.0e-05, both, normal init, constant ratio, layers 4-7"
    )
    assert describe({"rank": 8, "lr": 2e-4, "weight_decay": 0.1, "dropout": 0.0}) == (
        "rank 8, lr 2.0e-04, weight decay 0.1, dropout 0.0"
    )


def test_tune_gets_back_the_progress_of_this_session_which_counts_over_all_experiments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    TrialProgress(8, 30, 2, EvaluationConfig(), 0.5, 0.5, RunFolder(tmp_path), list)
    progress = TrialProgress(16, 30, 2, EvaluationConfig(), 0.5, 0.5, RunFolder(tmp_path), list)
    assert pickle.loads(pickle.dumps(progress)) is progress
    trial = SimpleNamespace(trial_id="a", config={"ratio": 0.25})
    progress.earlier = 8
    progress.on_trial_start(0, [trial], trial)
    assert capsys.readouterr().out.endswith("trial 9/16 starts: ratio 0.250\n")
