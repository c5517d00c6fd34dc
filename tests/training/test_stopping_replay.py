"""The stop rule on 24 quickstart trials that were recorded at full length (benchmarks/stopping.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
import stopping

from mft_ray.config import StopConfig
from mft_ray.training.job import Evaluation

RECORDING = Path(stopping.__file__).parent / "results" / "recordings" / "quickstart-seed0.json"


@pytest.fixture(scope="module")
def curves() -> list[list[Evaluation]]:
    return stopping.load(RECORDING)


def stopped(curve: list[Evaluation]) -> list[Evaluation]:
    """What of a trial would have happened."""
    (made,) = stopping.by_our_rule([curve], StopConfig())
    return curve[:made]


def test_no_trial_that_ends_above_fft_is_lost_and_the_winner_keeps_its_best(curves: list[list[Evaluation]]) -> None:
    assert len(curves) == 24
    above = [curve for curve in curves if stopping.best(curve) > 0]
    assert len(above) == 13
    assert all(stopping.best(stopped(curve)) > 0 for curve in above)
    winner = max(curves, key=stopping.best)
    assert stopping.best(stopped(winner)) == stopping.best(winner)


def test_hopeless_trials_are_stopped(curves: list[list[Evaluation]]) -> None:
    ended = [curve for curve in curves if len(stopped(curve)) < len(curve)]
    assert len(ended) >= 4
    assert all(stopping.best(curve) < -0.01 for curve in ended)


def test_a_trial_that_recovers_late_is_not_judged_by_a_straight_line(curves: list[list[Evaluation]]) -> None:
    # 14 points below FFT at two thirds of its steps, gaining ever faster, it ends 1 point above.
    (late,) = [curve for curve in curves if curve[4].delta < -0.14 and stopping.best(curve) > 0]
    line = late[4].delta + (late[4].delta - late[3].delta) / 100 * 200
    assert line + 2 * late[4].delta_error < 0
    assert len(stopped(late)) == len(late)
