"""When a run ends early."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest

from mft_ray.config import StopConfig
from mft_ray.training.job import Evaluation, Stop, StopReason, StopRule
from mft_ray.training.stopping import AgainstFft, Patience

STEPS = 100
FFT = 0.9
ERROR = 0.01  # of every difference to FFT


def _history(*scores: float, every: int = 10, annealing: int = 0) -> list[Evaluation]:
    """Evaluations of these scores, the first ``annealing`` of them not eligible."""
    return [
        Evaluation(
            step=index * every,
            score=score,
            standard_error=0.5,  # of the score: says nothing about the difference
            tokens=0,
            seconds=0.0,
            loss=1.0,
            ratio=0.1,
            eligible=index >= annealing,
            delta=score - FFT,
            delta_error=ERROR,
        )
        for index, score in enumerate(scores)
    ]


def _against_fft(**settings: object) -> AgainstFft:
    return AgainstFft(StopConfig.model_validate(settings))


def _reasons(rule: StopRule) -> Callable[[list[Evaluation], int], StopReason | None]:
    """A rule that gives its reasons alone."""

    def reason(history: list[Evaluation], total_steps: int) -> StopReason | None:
        stop = rule(history, total_steps)
        return stop.reason if stop else None

    return reason


def _rule(**settings: object) -> Callable[[list[Evaluation], int], StopReason | None]:
    return _reasons(_against_fft(**settings))


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ((0.1,), None),
        ((0.1, 0.2, 0.3, 0.4), None),
        ((0.1, 0.5, 0.4, 0.3), "plateau"),
        ((0.5, 0.5, 0.5), "plateau"),  # equal is no improvement
        ((0.5, 0.4, 0.6, 0.5), None),
    ],
)
def test_patience_counts_evaluations_since_the_best(scores, reason):
    assert _reasons(Patience(2))(_history(*scores), STEPS) == reason


def test_no_patience_never_stops():
    assert _reasons(Patience(None))(_history(*[0.5] * 50), STEPS) is None


def test_patience_stops_at_once_when_asked_and_not_before():
    history = _history(0.9, 0.1, 0.1, 0.1)
    assert [_reasons(Patience(3))(history[: length + 1], STEPS) for length in range(4)] == [None, None, None, "plateau"]


def test_a_trial_below_fft_is_stopped_only_past_its_grace():
    rule, history = _rule(grace=0.5, plateau=None), _history(*[0.5] * 11)
    assert [rule(history[: length + 1], STEPS) for length in range(5)] == [None] * 5
    assert rule(history[:6], STEPS) == "below_fft"


@pytest.mark.parametrize(("confidence", "errors"), [(0.95, 1.645), (0.99, 2.326), (0.841345, 1.0)])
def test_a_trial_is_below_fft_only_beyond_the_noise_of_their_difference(confidence, errors):
    rule = _rule(grace=0, plateau=None, confidence=confidence)
    below, within = (FFT - (errors + off) * ERROR for off in (0.01, -0.01))
    assert rule(_history(below, below, below), STEPS) == "below_fft"
    assert rule(_history(within, within, within), STEPS) is None


def test_two_evaluations_promise_anything():
    assert _rule(grace=0)(_history(0.1, 0.1), STEPS) is None


def test_the_best_score_counts_not_the_last():
    assert _rule(grace=0, plateau=None)(_history(0.95, 0.1, 0.1), STEPS) is None


def test_below_fft_can_be_off():
    assert _rule(grace=0, below_fft=False, plateau=None)(_history(0.0, 0.1, 0.1), STEPS) is None


def test_plateau_stops_before_the_grace_and_names_itself():
    assert _rule(grace=1, plateau=2)(_history(0.95, 0.9, 0.9), STEPS) == "plateau"
    assert _rule(grace=0, plateau=2)(_history(0.1, 0.1, 0.1), STEPS) == "below_fft"


def test_progress_is_what_exceeds_the_noise():
    rule = _rule(plateau=2, below_fft=False)
    assert rule(_history(0.9, 0.905, 0.909), STEPS) == "plateau"
    assert rule(_history(0.9, 0.905, 0.911), STEPS) is None
    assert rule(_history(0.9, 0.911, 0.905), STEPS) is None
    # Small steps add up: what counts is the best before the last evaluations.
    assert rule(_history(*[0.9 + 0.006 * index for index in range(10)]), STEPS) is None


def test_a_trial_that_is_surely_ahead_by_the_target_has_done_enough():
    rule = _rule(target=0.02, plateau=None)
    assert rule(_history(0.9, FFT + 0.02 + 1.655 * ERROR), STEPS) == "target"
    assert rule(_history(0.9, FFT + 0.02 + 1.635 * ERROR), STEPS) is None
    assert _rule(plateau=None)(_history(0.9, 1.0), STEPS) is None
    assert rule(_history(1.0, 1.0, annealing=2), STEPS) is None


def test_a_mask_still_being_annealed_is_not_judged():
    rule = _rule(grace=0, plateau=2)
    assert rule(_history(0.9, 0.1, 0.1, 0.1, annealing=4), STEPS) is None
    # Step 0 of an annealed trial IS the FFT model: its score must not count as the trial's best.
    assert rule(_history(0.9, 0.1, 0.1, 0.1, 0.1, annealing=2), STEPS) == "below_fft"
    assert rule(_history(0.95, 0.89, 0.9, annealing=1), STEPS) is None


def test_rules_travel_to_workers():
    for rule in (Patience(3), _against_fft()):
        assert pickle.loads(pickle.dumps(rule)) == rule


def test_a_trial_that_is_catching_up_goes_on():
    rule = _rule(grace=0, plateau=None)
    # The last gain again and again would pass FFT well before the end; without a gain it never would.
    catching_up = _history(0.3, 0.5, 0.7)
    assert rule(catching_up, STEPS) is None
    assert rule(_history(0.5, 0.7, 0.7), STEPS) == "below_fft"
    # Too slow: the line ends below FFT.
    assert rule(catching_up, total_steps=catching_up[-1].step) == "below_fft"


def test_a_trial_that_gains_ever_faster_is_not_judged():
    rule = _rule(grace=0, plateau=None)
    # The line of the last gain ends below FFT in both, but only one is slowing down.
    assert rule(_history(0.1, 0.11, 0.13), STEPS) is None
    assert rule(_history(0.1, 0.12, 0.13), STEPS) == "below_fft"
    assert rule(_history(0.3, 0.2, 0.1), STEPS) == "below_fft"


def test_a_decision_says_by_which_numbers():
    below = _against_fft(grace=0, plateau=None, confidence=0.841345)(_history(0.5, 0.7, 0.72), STEPS)
    ahead = 0.72 - FFT + 0.002 * (STEPS - 20)  # as between the last two evaluations
    assert below is not None
    assert (below.reason, below.step, below.total_steps, below.limit) == ("below_fft", 20, STEPS, 0.0)
    numbers = (below.best, below.projected, below.value, below.noise)
    assert numbers == pytest.approx((0.72 - FFT, ahead, ahead, ERROR), abs=1e-4)
    target = _against_fft(target=0.02, plateau=None, confidence=0.841345)(_history(0.9, 0.95), STEPS)
    assert target is not None
    assert (target.value, target.limit, target.noise, target.confidence) == pytest.approx(
        (0.05, 0.02, ERROR, 0.841345), abs=1e-4
    )
    assert (target.reason, target.projected, target.evaluations) == ("target", None, None)


def test_a_plateau_says_what_it_did_not_exceed():
    expected = Stop(StopReason.PLATEAU, 30, STEPS, 0.906, 0.9, ERROR, evaluations=2)
    assert _against_fft(plateau=2, below_fft=False)(_history(0.8, 0.9, 0.906, 0.9), STEPS) == expected
    assert Patience(2)(_history(0.5, 0.9, 0.3, 0.4), STEPS) == Stop(
        StopReason.PLATEAU, 30, STEPS, 0.4, 0.9, 0.0, evaluations=2
    )
