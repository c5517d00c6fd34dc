"""When a run ends early."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mft_ray.config import StopConfig
from mft_ray.training.job import Evaluation


@dataclass(frozen=True)
class Patience:
    """FFT trains until validation stops improving: so many evaluations without a new best."""

    evaluations: int | None

    def __call__(self, history: Sequence[Evaluation], total_steps: int) -> str | None:
        """Return ``plateau`` or None."""
        return "plateau" if _stale(history, self.evaluations) else None


@dataclass(frozen=True)
class AgainstFft:
    """A mask's trial ends when it will clearly end below FFT, or no longer moves.

    Attributes:
        settings: grace, margin and plateau.
        fft_score: of the FFT baseline on the same validation examples.
        standard_error: of that score.
    """

    settings: StopConfig
    fft_score: float
    standard_error: float

    def __call__(self, history: Sequence[Evaluation], total_steps: int) -> str | None:
        """Return ``below_fft``, ``plateau`` or None. A mask still being annealed is not judged."""
        eligible = [evaluation for evaluation in history if evaluation.eligible]
        if not eligible:
            return None
        best = max(evaluation.score for evaluation in eligible)
        past_grace = history[-1].step >= self.settings.grace * total_steps
        bar = self.fft_score - self.settings.margin * self.standard_error
        if self.settings.below_fft and past_grace and max(best, _projected(eligible, total_steps)) < bar:
            return "below_fft"
        return "plateau" if _stale(eligible, self.settings.plateau) else None


def _projected(history: Sequence[Evaluation], total_steps: int) -> float:
    """Return the score at the full budget if the run goes on as between its last two evaluations.

    Masks recover late, while the learning rate decays, and faster at first than later: a straight line
    promises rather too much than too little, so it stops no trial that could still get there.
    """
    if len(history) < 2:
        return history[-1].score
    before, last = history[-2:]
    slope = (last.score - before.score) / (last.step - before.step)
    return last.score + max(slope, 0.0) * (total_steps - last.step)


def _stale(history: Sequence[Evaluation], evaluations: int | None) -> bool:
    best = max(range(len(history)), key=lambda index: history[index].score)
    return evaluations is not None and len(history) - 1 - best >= evaluations
