"""What one study knows, brought into another: trials have the same numbers in both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from mft_ray.runs.study.live import LiveStudy

_Key = TypeVar("_Key", str, int)


def bring_up(study: LiveStudy, source: LiveStudy) -> None:
    """Have a study know all that another one does; what it knows beyond that stays.

    Args:
        study: is made if it is not there; else it has come from the same trials.
        source: need not be there.
    """
    if (known := source.id) is None:
        return
    there, mine = source.storage, study.storage
    number = study.have(there.get_study_directions(known))
    for name, value in _new(there.get_study_system_attrs(known), mine.get_study_system_attrs(number)):
        mine.set_study_system_attr(number, name, value)
    for name, value in _new(there.get_study_user_attrs(known), mine.get_study_user_attrs(number)):
        mine.set_study_user_attr(number, name, value)
    trials = {trial.number: trial for trial in mine.get_all_trials(number, deepcopy=False)}
    for trial in there.get_all_trials(known, deepcopy=False):
        if trial.number not in trials:
            mine.create_new_trial(number, template_trial=trial)
        elif not trials[trial.number].state.is_finished():
            _bring_up_trial(mine, trials[trial.number], trial)


def _bring_up_trial(storage: BaseStorage, trial: FrozenTrial, source: FrozenTrial) -> None:
    known = trial._trial_id
    if trial.state == TrialState.WAITING and source.state == TrialState.RUNNING:
        storage.set_trial_state_values(known, TrialState.RUNNING)
    for name, value in _new(source.params, trial.params):
        distribution = source.distributions[name]
        storage.set_trial_param(known, name, distribution.to_internal_repr(value), distribution)
    for name, value in _new(source.system_attrs, trial.system_attrs):
        storage.set_trial_system_attr(known, name, value)
    for name, value in _new(source.user_attrs, trial.user_attrs):
        storage.set_trial_user_attr(known, name, value)
    for step, value in _new(source.intermediate_values, trial.intermediate_values):
        storage.set_trial_intermediate_value(known, step, value)
    if source.state.is_finished():
        storage.set_trial_state_values(known, source.state, source.values)


def _new(source: Mapping[_Key, Any], known: Mapping[_Key, Any]) -> Iterator[tuple[_Key, Any]]:
    """Yield what is not known, or is known otherwise."""
    return ((name, value) for name, value in source.items() if name not in known or known[name] != value)
