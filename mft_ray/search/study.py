"""Optuna under Ray Tune: the search algorithm, its study on disk, and the truth about stopped trials."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from mft_ray.search.study_file import open_storage

METRIC = "best_score"
RATIO = "ratio"
STUDY_NAME = "mft_ray"
# Trials that ended for one of these reasons did not spend their budget: Optuna calls that pruned.
_PRUNED = ("below_fft", "plateau", "pruned", "cancelled")


class StudySearch(OptunaSearch):  # type: ignore[misc]
    """`OptunaSearch` that tells Optuna PRUNED, FAIL and COMPLETE apart, and leaves no trial RUNNING.

    Attributes:
        over: asked before each suggestion; True ends the search.
        keep: called when the study has changed.
    """

    over: Callable[[], bool] | None = None
    keep: Callable[[], object] | None = None

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Propose a configuration, unless the search is over."""
        if self.over and self.over():
            return str(Searcher.FINISHED)
        suggestion: dict[str, Any] | None = super().suggest(trial_id)
        if self.keep:
            self.keep()
        return suggestion

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Report an intermediate value, unless the mask is still being annealed and has none."""
        value = result.get(METRIC)
        # With two objectives Optuna takes no intermediate values. A trial's closing result repeats its last evaluation.
        if len(self._ot_study.directions) > 1:
            return
        if value is not None and math.isfinite(value) and "stopped_reason" not in result:
            # A resumed trial may have ended, and said so, after the snapshot that it was resumed from.
            with suppress(optuna.exceptions.UpdateFinishedTrialError):
                # The optimizer step, rather than Tune's count of reports, which starts anew on resume.
                self._ot_trials[trial_id].report(value, result["step"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna how a trial ended."""
        if trial_id in self._completed_trials:
            return
        told = result or {}
        values = [told.get(metric, math.nan) for metric in (METRIC, RATIO)][: len(self._ot_study.directions)]
        # Without a reason it is Tune that ended it.
        if told and not error and told.get("stopped_reason", "pruned") in _PRUNED:
            state = TrialState.PRUNED
        elif error or not all(value is not None and math.isfinite(value) for value in values):
            state = TrialState.FAIL
        else:
            state = TrialState.COMPLETE
        self._ot_study.tell(
            self._ot_trials[trial_id],
            values if state == TrialState.COMPLETE else None,
            state=state,
            skip_if_finished=True,
        )
        self._completed_trials.add(trial_id)
        if self.keep:
            self.keep()

    def restore(self, checkpoint_path: str) -> None:
        """Go on with a study; trials that were asked for after the last snapshot are failed, not forgotten."""
        super().restore(checkpoint_path)
        known = {trial.number for trial in self._ot_trials.values()}
        for trial in self._ot_study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.number not in known:
                self._ot_study.tell(trial.number, state=TrialState.FAIL)
                # What the sampler drew it draws again, from its restored state; a given point would be lost.
                if trial.params in self._points_to_evaluate:
                    self._ot_study.enqueue_trial(trial.params)


def build_sampler(name: str, startup_trials: int, seed: int) -> BaseSampler:
    """Return one of Optuna's samplers.

    Args:
        name: ``tpe`` (multivariate), ``random``, ``cmaes`` (numbers only; it draws choices at random) or ``gp``.
        startup_trials: random trials before it proposes.
        seed: of all its draws.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name == "random":
            return RandomSampler(seed=seed)
        if name == "cmaes":
            return CmaEsSampler(n_startup_trials=startup_trials, seed=seed, warn_independent_sampling=False)
        if name == "gp":
            return GPSampler(n_startup_trials=startup_trials, seed=seed)
        return TPESampler(multivariate=True, constant_liar=True, n_startup_trials=startup_trials, seed=seed)


def build_search(
    path: Path,
    space: dict[str, BaseDistribution],
    points: list[dict[str, Any]],
    sampler: str,
    startup_trials: int,
    seed: int,
    objectives: int = 1,
) -> StudySearch:
    """Return the search algorithm over a new SQLite study.

    Args:
        path: of the study's database, replaced if it exists.
        space: distribution by knob.
        points: configurations tried first.
        sampler: of `build_sampler`.
        startup_trials: random trials before the sampler proposes.
        seed: of the sampler.
        objectives: 1 is the score, 2 the masking ratio as well.
    """
    path.unlink(missing_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return StudySearch(
        space,
        metric=[METRIC, RATIO][:objectives] if objectives > 1 else METRIC,
        mode=["max"] * objectives if objectives > 1 else "max",
        points_to_evaluate=points,
        sampler=build_sampler(sampler, startup_trials, seed),
        study_name=STUDY_NAME,
        storage=open_storage(path),
    )
