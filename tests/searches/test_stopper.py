"""Tune's look at trials, behind the rule that workers ask."""

from __future__ import annotations

import pickle
from typing import Any

from mft_ray.config import StopConfig
from mft_ray.searches.stopper import TrialStopper
from mft_ray.searches.trial_report import Ended, Evaluated
from mft_ray.training.job import Evaluation, StopReason
from mft_ray.training.stopping import AgainstFft


def result(step: int, delta: float) -> dict[str, Any]:
    evaluation = Evaluation(step, 0.5 + delta, 0.01, step, step, 0.1, 0.1, True, delta, 0.001)
    return {**Evaluated(evaluation, 0.5 + delta).to_tune(), "training_iteration": 1, "trial_id": "a"}


def backstop() -> TrialStopper:
    return TrialStopper(AgainstFft(StopConfig(below_fft=False, plateau=2)), 100)


def test_a_trial_that_its_workers_ended_is_none_of_its_business() -> None:
    stop = backstop()
    assert not any(stop("a", result(step, 0.0)) for step in (0, 10, 20))
    assert not stop("a", Ended(StopReason.PLATEAU, 0.5).to_tune())
    assert not stop.stop_all()


def test_a_trial_that_goes_on_after_its_rule_is_ended() -> None:
    stop = backstop()
    answers = [stop("a", result(step, 0.0)) for step in (0, 10, 20, 30)]
    assert answers == [False, False, False, True]


def test_a_trial_that_goes_on_after_its_last_step_is_ended() -> None:
    stop = backstop()
    answers = [stop("a", result(step, step / 100)) for step in (0, 50, 100, 150)]
    assert answers == [False, False, False, True]


def test_trials_are_judged_one_by_one() -> None:
    stop = backstop()
    assert not any(stop(trial, result(step, 0.0)) for trial in "abc" for step in (0, 10, 20))


def test_a_trial_that_goes_on_from_its_checkpoint_repeats_nothing() -> None:
    stop = backstop()
    steps = (0, 10, 10, 10, 20)
    assert not any(stop("a", result(step, 0.0)) for step in steps)


def test_it_is_kept_with_the_search() -> None:
    stop = backstop()
    for step in (0, 10, 20):
        stop("a", result(step, 0.0))
    assert pickle.loads(pickle.dumps(stop))("a", result(30, 0.0))
