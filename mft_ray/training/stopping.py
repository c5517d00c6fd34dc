"""When a run ends early."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from mft_ray.config import StopConfig
from mft_ray.training.job import Evaluation, Stop, StopReason


@dataclass(frozen=True)
class Patience:
    """FFT trains until validation stops improving: so many evaluations without a new best."""

    evaluations: int | None

    def __call__(self, history: Sequence[Evaluation], total_steps: int) -> Stop | None:
        """Return ``plateau`` or None."""
        best = max(range(len(history)), key=lambda index: history[index].score)
        if self.evaluations is None or len(history) - 1 - best < self.evaluations:
            return None
        value = max(evaluation.score for evaluation in history[best + 1 :])
        limit, step = history[best].score, history[-1].step
        return Stop(StopReason.PLATEAU, step, total_steps, value, limit, 0.0, evaluations=self.evaluations)


@dataclass(frozen=True)
class AgainstFft:
    """A mask's trial ends when it will surely end below FFT, no longer moves, or is far enough ahead.

    What is judged is the difference to FFT on the same validation examples, with its own standard error: far
    smaller than that of either score, since both models agree on most examples.

    Attributes:
        settings: which rules, and how sure they must be.
    """

    settings: StopConfig

    def __call__(self, history: Sequence[Evaluation], total_steps: int) -> Stop | None:
        """Return ``below_fft``, ``plateau``, ``target`` or None. A mask still being annealed is not judged."""
        eligible = [evaluation for evaluation in history if evaluation.eligible]
        if not eligible:
            return None
        settings, last = self.settings, eligible[-1]
        confidence = settings.confidence
        noise = NormalDist().inv_cdf(confidence) * last.delta_error
        at = (last.step, total_steps)
        if settings.target is not None and last.delta - noise >= settings.target:
            return Stop(StopReason.TARGET, *at, last.delta, settings.target, noise, confidence)
        best, ahead = max(evaluation.delta for evaluation in eligible), projected(eligible, total_steps)
        past_grace = last.step >= settings.grace * total_steps
        if settings.below_fft and past_grace and max(best, ahead) + noise < 0:
            return Stop(StopReason.BELOW_FFT, *at, max(best, ahead), 0.0, noise, confidence, best, ahead)
        return _still(eligible, settings.plateau, total_steps)


def projected(history: Sequence[Evaluation], total_steps: int) -> float:
    """Return the difference to FFT at the full budget if the run goes on as between its last two evaluations.

    A run that gains less and less will not exceed that line. One that still gains more and more, as masks do
    while the learning rate decays after the ratio has been reached, may end anywhere: it is not judged yet.
    """
    if len(history) < 3:
        return math.inf
    first, middle, last = history[-3:]
    before = (middle.delta - first.delta) / (middle.step - first.step)
    now = (last.delta - middle.delta) / (last.step - middle.step)
    if now > max(before, 0.0):
        return math.inf
    return last.delta + max(now, 0.0) * (total_steps - last.step)


def _still(history: Sequence[Evaluation], evaluations: int | None, total_steps: int) -> Stop | None:
    """Return ``plateau`` if none of the last evaluations is ahead of the best before them by more than its noise."""
    if evaluations is None or len(history) <= evaluations:
        return None
    before, recent = history[:-evaluations], history[-evaluations:]
    bar = max(evaluation.score for evaluation in before)
    if not all(evaluation.score <= bar + evaluation.delta_error for evaluation in recent):
        return None
    nearest = max(recent, key=lambda evaluation: evaluation.score - evaluation.delta_error)
    step, noise = recent[-1].step, nearest.delta_error
    return Stop(StopReason.PLATEAU, step, total_steps, nearest.score, bar, noise, evaluations=evaluations)
