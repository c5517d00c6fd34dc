"""More trials on a study that there is: what it knows stays, and nothing that was tried is tried again."""

from __future__ import annotations

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState

from mft_ray.runs.study.live import LiveStudy
from mft_ray.searches.optuna_search import StudySearch, build_search


def continue_search(study: LiveStudy, sampler: str, startup_trials: int, seed: int, objectives: int = 1) -> StudySearch:
    """Return the search algorithm over a study that has trials; none of them is at work any more.

    Given points that have not been tried are tried first; those that have are not tried again.

    Args:
        study: the study.
        sampler: name of a sampler of `build_sampler`.
        startup_trials: random trials before the sampler proposes, those that there are included.
        seed: seed of the study's first sampler; what is drawn from now on is drawn with another.
        objectives: number of objectives of the study.
    """
    known = optuna.load_study(study_name=study.name, storage=study.storage)
    _fail_lost(known)
    trials = known.get_trials(deepcopy=False)
    return build_search(study, _space(known), [], sampler, startup_trials, seed + len(trials), objectives)


def _fail_lost(study: optuna.Study) -> None:
    """Fail trials that were asked for and then lost with a process; a given point among them waits to be tried."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        if "fixed_params" in trial.system_attrs:
            study.enqueue_trial(trial.system_attrs["fixed_params"])


def _space(study: optuna.Study) -> dict[str, BaseDistribution]:
    """Return the distributions that the study's trials were drawn from: Optuna lets no choice change within a study."""
    space: dict[str, BaseDistribution] = {}
    for trial in study.get_trials(deepcopy=False):
        space |= trial.distributions
    return space
