"""Tune's own look at what trials report, behind the rule that their workers ask."""

from __future__ import annotations

import ray.tune

from mft_ray.searches.trial_report import Ended, TuneResult, from_tune
from mft_ray.training.job import Evaluation, StopRule


class TrialStopper(ray.tune.Stopper):  # type: ignore[misc]
    """Ends a trial that goes on although its stop rule, or its last step, has ended it an evaluation ago.

    Workers ask the rule themselves, so that all of them stop together. This is for workers that do not.

    Args:
        rule: rule of every trial.
        total_steps: number of steps of a trial, at most, where it does not say so itself.
    """

    def __init__(self, rule: StopRule, total_steps: int) -> None:
        self.rule, self.total_steps = rule, total_steps
        self._histories: dict[str, list[Evaluation]] = {}

    def __call__(self, trial_id: str, result: TuneResult) -> bool:
        """Say whether a trial is to end with this result."""
        report = from_tune(result)
        if isinstance(report, Ended):
            self._histories.pop(trial_id, None)
            return False
        evaluation = report.evaluation
        # A trial that was started anew goes on from its last checkpoint.
        before = [earlier for earlier in self._histories.get(trial_id, []) if earlier.step < evaluation.step]
        self._histories[trial_id] = [*before, evaluation]
        return bool(before) and self._over(before, report.total_steps or self.total_steps)

    def stop_all(self) -> bool:
        """Never end the whole search: the budget does."""
        return False

    def _over(self, history: list[Evaluation], total_steps: int) -> bool:
        return history[-1].step >= total_steps or self.rule(history, total_steps) is not None
