"""Optuna under Ray Tune: the search algorithm, its study on disk, and the truth about stopped trials."""

from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import Trial, TrialState
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from mft_ray.config.params import Params
from mft_ray.runs.live.steering import Queued
from mft_ray.runs.study.live import LiveStudy, Unusable
from mft_ray.searches.trial_report import METRIC, RATIO, Ended, TuneResult, ended, from_tune
from mft_ray.training.job import StopReason

# Attributes of Optuna's trials, for whoever looks at the study.
TRIAL_ID, STOPPED_REASON, VALUE_IS, QUEUED = "trial_id", "stopped_reason", "value_is", "queued"
# What of a search belongs to the process that runs it, and is not saved with it.
_OF_SESSION = ("study", "over", "queue", "take", "_storage", "_study_name", "_ot_study", "_ot_trials")

# The one of the search that this process runs.
_current: StudySearch | None = None


def _of_this_session() -> StudySearch:
    """Return the search algorithm that this process has built."""
    assert _current is not None, "a search is restored before its study is at hand"
    return _current


class StudySearch(OptunaSearch):  # type: ignore[misc]
    """`OptunaSearch` that tells Optuna what every trial scored, however it ended, and leaves no trial RUNNING.

    A trial that was stopped early is COMPLETE with its best score, and one that diverged with the worst score of the
    others: samplers learn from values. Told PRUNED, TPE ranks trials by the step that they reached and below all
    complete ones, and GP and CMA-ES do not look at them; told FAIL, none does. How a trial ended is its attribute
    ``stopped_reason``. Only one that came to nothing through no fault of its settings is FAIL.

    Tune saves its search algorithm with an experiment and restores it with it. Of this one it gets back that of the
    session, which has the study at hand, wherever that lies now; `save` and `restore` are of what is drawn next, and of
    which trials of the study are whose.

    Attributes:
        study: the study, which is kept whenever a trial begins or ends.
        over: asked before each suggestion; True ends the search.
        queue: returns the configurations that a person wants to have tried next.
        take: takes one of them out of the queue.
    """

    study: LiveStudy
    over: Callable[[], bool] | None = None
    queue: Callable[[], list[Queued]] | None = None
    take: Callable[[Queued], object] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _of_this_session, ()

    def tell_study(self, score: str, facts: Mapping[str, Any]) -> None:
        """Have the study say what its values are and what they are held against, to whoever looks at it.

        Args:
            score: name of the score; where the ratio is an objective too, it keeps its own.
            facts: anything else, by name.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._ot_study.set_metric_names([score, RATIO][: len(self._ot_study.directions)])
        for name, value in facts.items():
            self._ot_study.set_user_attr(name, value)

    def suggest(self, trial_id: str) -> Params | str | None:
        """Propose a configuration, unless the search is over."""
        if self.over and self.over():
            return str(Searcher.FINISHED)
        self._enqueue()
        suggestion: Params | None = super().suggest(trial_id)
        if suggestion is not None:
            self._ot_trials[trial_id].set_user_attr(TRIAL_ID, trial_id)
        self.study.keep()
        return suggestion

    def _enqueue(self) -> None:
        """Have what a person asked for first be the next that is tried, behind points that were given at the start."""
        for queued in (self.queue() if self.queue else [])[:1]:
            # It is there already where the process ended before it could be taken.
            if not any(trial.user_attrs.get(QUEUED) == queued.name for trial in self._ot_study.get_trials(False)):
                self._ot_study.enqueue_trial(queued.point, user_attrs={QUEUED: queued.name})
            if self.take:
                self.take(queued)

    def on_trial_result(self, trial_id: str, result: TuneResult) -> None:
        """Report an intermediate value, unless the mask is still being annealed and has none."""
        report = from_tune(result)
        # With two objectives Optuna takes no intermediate values. A trial's closing report repeats its last evaluation.
        if len(self._ot_study.directions) > 1 or isinstance(report, Ended):
            return
        if math.isfinite(report.best):
            # As in `on_trial_complete`.
            with suppress(optuna.exceptions.UpdateFinishedTrialError):
                # The optimizer step, rather than Tune's count of reports, which starts anew on resume.
                self._ot_trials[trial_id].report(report.best, report.evaluation.step)

    def on_trial_complete(self, trial_id: str, result: TuneResult | None = None, error: bool = False) -> None:
        """Tell Optuna how a trial ended."""
        if trial_id in self._completed_trials:
            return
        report, trial = ended(result, error), self._ot_trials[trial_id]
        values, what = self._values(trial_id, report)
        # A resumed trial may have ended, and said so, after the snapshot that it was resumed from.
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            for name, attribute in ((STOPPED_REASON, str(report.reason)), (VALUE_IS, what)):
                trial.set_user_attr(name, attribute)
        state = TrialState.COMPLETE if values else TrialState.FAIL
        self._ot_study.tell(trial, values, state=state, skip_if_finished=True)
        self._completed_trials.add(trial_id)
        self.study.keep()

    def _values(self, trial_id: str, report: Ended) -> tuple[list[float] | None, str]:
        """Return what a trial is worth to a sampler, and what that is; None if nothing can be learned from it."""
        objectives = len(self._ot_study.directions)
        ratio = report.ratio
        values = [report.best, ratio][:objectives]
        if report.reason != StopReason.FAILED and all(map(math.isfinite, values)):
            return values, "its best score"
        if not report.diverged:
            return None, "none"
        worst = self._worst_score()
        # It may have diverged before its first evaluation.
        ratio = ratio if math.isfinite(ratio) else self._ot_trials[trial_id].params.get(RATIO, 0.0)
        return (None, "none") if worst is None else ([worst, ratio][:objectives], "the worst score: it diverged")

    def _worst_score(self) -> float | None:
        """Return the lowest score that a trial ended with, or, before any has, that one had on its way."""
        trials = self._ot_study.get_trials(deepcopy=False)
        ended = [trial.values[0] for trial in trials if trial.state == TrialState.COMPLETE]
        return min(ended or [value for trial in trials for value in trial.intermediate_values.values()], default=None)

    def save(self, checkpoint_path: str) -> None:
        """Save what a study does not say; the study is kept first, since it must not be behind."""
        self.study.keep()
        state = {name: value for name, value in self.__dict__.items() if name not in _OF_SESSION}
        numbers = {trial_id: trial.number for trial_id, trial in self._ot_trials.items()}
        with open(checkpoint_path, "wb") as file:
            pickle.dump((state, numbers), file)

    def restore(self, checkpoint_path: str) -> None:
        """Go on with a study; trials that were asked for after the last snapshot are failed, not forgotten."""
        with open(checkpoint_path, "rb") as file:
            state, numbers = pickle.load(file)
        self.__dict__.update(state)
        study = self._ot_study
        study.sampler = self._sampler
        ids = {trial.number: trial._trial_id for trial in study.get_trials(deepcopy=False)}
        if lost := set(numbers.values()) - ids.keys():
            raise Unusable(f"The study {self.study.name} has no trials {sorted(lost)} of this run any more")
        self._ot_trials = {trial_id: Trial(study, ids[number]) for trial_id, number in numbers.items()}
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.number not in numbers.values():
                study.tell(trial.number, state=TrialState.FAIL)
                # What the sampler drew it draws again, from its restored state; a given point would be lost.
                asked = {QUEUED: trial.user_attrs[QUEUED]} if QUEUED in trial.user_attrs else None
                if asked or trial.params in self._points_to_evaluate:
                    study.enqueue_trial(trial.params, user_attrs=asked)


def build_sampler(name: str, startup_trials: int, seed: int) -> BaseSampler:
    """Return one of Optuna's samplers.

    Args:
        name: ``tpe`` (multivariate), ``random``, ``cmaes`` (numbers only; it draws choices at random) or ``gp``.
        startup_trials: random trials before it proposes.
        seed: seed of all its draws.
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
    study: LiveStudy,
    space: dict[str, BaseDistribution],
    points: list[Params],
    sampler: str,
    startup_trials: int,
    seed: int,
    objectives: int = 1,
) -> StudySearch:
    """Return the search algorithm over a study: a new one, or one that goes on with the trials that it has.

    Args:
        study: the study, which may be there already.
        space: distribution by parameter.
        points: configurations tried first.
        sampler: name of a sampler of `build_sampler`.
        startup_trials: random trials before the sampler proposes.
        seed: seed of the sampler.
        objectives: 1 is the score, 2 the masking ratio as well.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    global _current
    _current = StudySearch(
        space,
        metric=[METRIC, RATIO][:objectives] if objectives > 1 else METRIC,
        mode=["max"] * objectives if objectives > 1 else "max",
        points_to_evaluate=points,
        sampler=build_sampler(sampler, startup_trials, seed),
        study_name=study.name,
        storage=study.storage,
    )
    _current.study = study
    return _current
