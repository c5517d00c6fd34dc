"""What Optuna is told, in a real study on disk."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from mft_ray.runs.study.file import STUDY_NAME
from mft_ray.runs.study.live import LiveStudy, LocalStudy, Unusable
from mft_ray.searches.optuna_search import StudySearch, build_search
from mft_ray.searches.trial_report import Ended, Evaluated
from mft_ray.training.job import Evaluation, StopReason

SPACE = {"ratio": FloatDistribution(0.0, 0.5), "init": CategoricalDistribution(["normal", "magnitude"])}
PRESET = {"ratio": 0.1, "init": "normal"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "study.db"


def _search(
    path: Path,
    points: list[dict[str, Any]] | None = None,
    seed: int = 0,
    sampler: str = "tpe",
    startup: int = 3,
    objectives: int = 1,
) -> StudySearch:
    study = LocalStudy(path)
    study.begin_anew()
    search = _searched(study, points, seed, sampler, startup, objectives)
    study.keep()
    return search


def _searched(
    study: LiveStudy,
    points: list[dict[str, Any]] | None = None,
    seed: int = 0,
    sampler: str = "tpe",
    startup: int = 3,
    objectives: int = 1,
) -> StudySearch:
    return build_search(study, SPACE, [PRESET] if points is None else points, sampler, startup, seed, objectives)


def _trials(path: Path) -> list[FrozenTrial]:
    """What another program finds in the database."""
    return optuna.load_study(study_name=STUDY_NAME, storage=f"sqlite:///{path}").trials


def _evaluation(step: int, ratio: float = 0.0) -> Evaluation:
    return Evaluation(step, 0.5, 0.01, 64 * step, float(step), 0.1, ratio, True)


def _report(search: StudySearch, trial: str, *values: float) -> None:
    for step, value in enumerate(values):
        search.on_trial_result(
            trial, Evaluated(_evaluation(10 * step), value).to_tune() | {"training_iteration": step + 1}
        )


def _end(search: StudySearch, trial: str, value: float | None, reason: str = "completed") -> None:
    search.on_trial_complete(trial, Ended(StopReason(reason), value, _evaluation(10)).to_tune())  # type: ignore[arg-type]


def test_points_are_tried_first_in_their_order(path):
    points = [PRESET, {"ratio": 0.4, "init": "magnitude"}]
    search = _search(path, points)
    assert [search.suggest("a"), search.suggest("b")] == points
    third = search.suggest("c")
    assert set(third) == set(SPACE)
    assert third not in points


def test_suggestions_depend_on_the_seed_alone(tmp_path):
    def drawn(name: str, seed: int) -> list[Any]:
        search = _search(tmp_path / name, seed=seed)
        return [search.suggest(f"{index}") for index in range(3)]

    assert drawn("a.db", 1) == drawn("b.db", 1)
    assert drawn("a.db", 1) != drawn("c.db", 2)


@pytest.mark.parametrize("reason", ["completed", "below_fft", "plateau", "target", "pruned", "cancelled"])
def test_however_a_trial_ended_its_best_score_is_told(path, reason):
    search = _search(path)
    search.suggest("a")
    _report(search, "a", 0.3, 0.5, 0.4)
    _end(search, "a", 0.5, reason)
    (trial,) = _trials(path)
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.5)
    assert trial.params == PRESET
    assert trial.intermediate_values == {0: 0.3, 10: 0.5, 20: 0.4}
    assert trial.user_attrs == {"trial_id": "a", "stopped_reason": reason, "value_is": "its best score"}


def _diverge(search: StudySearch, trial: str) -> None:
    search.on_trial_complete(trial, Ended(StopReason.FAILED, diverged=True).to_tune())


def test_a_trial_that_diverged_is_told_the_worst_that_another_one_ended_with(path):
    search = _search(path)
    for trial, value in (("a", 0.5), ("b", 0.3), ("c", 0.4)):
        search.suggest(trial)
        _report(search, trial, 0.1)
        _end(search, trial, value)
    search.suggest("d")
    _diverge(search, "d")
    trial = _trials(path)[-1]
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.3)
    assert trial.user_attrs["stopped_reason"] == "failed"
    assert trial.user_attrs["value_is"] == "the worst score: it diverged"
    study = optuna.load_study(study_name=STUDY_NAME, storage=f"sqlite:///{path}")
    assert study.best_trial.user_attrs["trial_id"] == "a"


def test_the_first_that_diverges_is_told_the_worst_on_anyones_way(path):
    search = _search(path)
    search.suggest("a")
    search.suggest("b")
    _report(search, "b", 0.2, 0.4)
    _diverge(search, "a")
    assert (_trials(path)[0].state, _trials(path)[0].value) == (TrialState.COMPLETE, 0.2)


def test_where_nothing_is_known_a_trial_that_diverged_has_failed(path):
    search = _search(path)
    search.suggest("a")
    _diverge(search, "a")
    assert _trials(path)[0].state == TrialState.FAIL


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes"])
def test_samplers_keep_away_from_where_trials_diverge(sampler):
    search = _searched(LiveStudy(InMemoryStorage()), points=[], sampler=sampler, startup=5)
    ratios = []
    for index in range(24):
        ratios.append(search.suggest(f"{index}")["ratio"])
        if ratios[-1] > 0.25:
            _diverge(search, f"{index}")
        else:
            _end(search, f"{index}", ratios[-1])
    assert sum(ratio > 0.25 for ratio in ratios[-10:]) <= 5
    assert max(ratio for ratio in ratios if ratio <= 0.25) > 0.2


def test_a_failed_trial_is_told_and_the_search_goes_on(path):
    search = _search(path)
    search.suggest("a")
    search.on_trial_complete("a", None, error=True)
    search.suggest("b")
    _report(search, "b", 0.3)
    search.on_trial_complete("b", Evaluated(_evaluation(10), 0.3).to_tune(), error=True)
    assert [trial.state for trial in _trials(path)] == [TrialState.FAIL] * 2
    assert search.suggest("c")


@pytest.mark.parametrize("value", [math.nan, None, math.inf])
def test_a_trial_without_a_finite_score_is_never_left_running(path, value):
    search = _search(path)
    search.suggest("a")
    _report(search, "a", math.nan)
    _end(search, "a", value)
    (trial,) = _trials(path)
    assert trial.state == TrialState.FAIL
    assert trial.intermediate_values == {}


def test_a_trial_that_ended_without_a_result_is_failed(path):
    search = _search(path)
    search.suggest("a")
    search.on_trial_complete("a")
    assert _trials(path)[0].state == TrialState.FAIL


def test_the_closing_result_is_not_reported_twice(path, recwarn):
    search = _search(path)
    search.suggest("a")
    _report(search, "a", 0.3, 0.5)
    search.on_trial_result("a", Ended(StopReason.COMPLETED, 0.5, _evaluation(10)).to_tune())
    _end(search, "a", 0.5)
    _end(search, "a", 0.5)  # Tune may say so twice
    assert _trials(path)[0].intermediate_values == {0: 0.3, 10: 0.5}
    assert not [warning for warning in recwarn if "reported" in str(warning.message)]


def test_sampler_learns_from_what_it_is_told(path):
    search = _search(path)
    for index in range(25):
        point = search.suggest(f"{index}")
        assert point
        _end(search, f"{index}", -abs(point["ratio"] - 0.33))
    late = [trial.params["ratio"] for trial in _trials(path)[-8:]]
    assert sum(abs(ratio - 0.33) < 0.1 for ratio in late) >= 6


def _restored(path: Path, snapshot: Path) -> StudySearch:
    """The search as a new process gets it back: built on the study's file, unpickled by Tune, then its state loaded."""
    built = build_search(LocalStudy(path), SPACE, [], "random", 1, 9)
    fresh: StudySearch = pickle.loads(pickle.dumps(StudySearch.__new__(StudySearch)))
    assert fresh is built
    fresh.restore(str(snapshot))
    fresh.study.keep()
    return fresh


def test_restore_goes_on_with_the_study(path, tmp_path):
    search, snapshot = _search(path), tmp_path / "snapshot"
    search.suggest("a")
    _report(search, "a", 0.3)
    _end(search, "a", 0.3)
    search.suggest("b")
    _report(search, "b", 0.2)
    search.save(str(snapshot))
    again = _restored(path, snapshot)
    # The unfinished trial starts anew from its checkpoint, and reports steps that it reported before.
    _report(again, "b", 0.2, 0.4)
    _end(again, "b", 0.4)
    assert [trial.state for trial in _trials(path)] == [TrialState.COMPLETE] * 2
    assert _trials(path)[1].intermediate_values == {0: 0.2, 10: 0.4}
    assert again.suggest("c")
    assert len(_trials(path)) == 3


def test_restore_fails_trials_that_nobody_runs_any_more(path, tmp_path):
    search, snapshot = _search(path), tmp_path / "snapshot"
    search.suggest("a")
    search.save(str(snapshot))
    lost = search.suggest("lost")
    assert lost
    again = _restored(path, snapshot)
    assert [trial.state for trial in _trials(path)] == [TrialState.RUNNING, TrialState.FAIL]
    _end(again, "a", 0.3)
    again.suggest("b")
    _end(again, "b", 0.2)
    assert TrialState.RUNNING not in [trial.state for trial in _trials(path)]


def test_a_point_lost_with_the_process_is_tried_all_the_same(path, tmp_path):
    search, snapshot = _search(path, [PRESET, {"ratio": 0.4, "init": "magnitude"}]), tmp_path / "snapshot"
    search.save(str(snapshot))
    assert search.suggest("lost") == PRESET
    again = _restored(path, snapshot)
    tried = [again.suggest("a"), again.suggest("b")]
    assert PRESET in tried
    assert {"ratio": 0.4, "init": "magnitude"} in tried


@pytest.mark.parametrize("error", [False, True])
def test_a_trial_that_ended_after_the_last_snapshot_ends_again_without_harm(path, tmp_path, error):
    search, snapshot = _search(path), tmp_path / "snapshot"
    search.suggest("a")
    search.save(str(snapshot))
    _report(search, "a", 0.3)
    search.on_trial_complete("a", Ended(StopReason.COMPLETED, 0.3, _evaluation(0)).to_tune(), error=error)
    again = _restored(path, snapshot)
    _report(again, "a", 0.3, 0.4)
    _end(again, "a", 0.4)
    (trial,) = _trials(path)
    assert trial.state == (TrialState.FAIL if error else TrialState.COMPLETE)
    assert again.suggest("b")


def test_a_new_search_does_not_take_up_an_old_study(path):
    _search(path).suggest("a")
    assert _trials(path)
    _search(path)
    assert [trial.state for trial in _trials(path)] == [TrialState.WAITING]  # the preset, not yet tried


def test_nothing_is_suggested_once_the_search_is_over(path):
    search = _search(path)
    over = False
    search.over = lambda: over
    assert search.suggest("a") == PRESET
    over = True
    assert search.suggest("b") == Searcher.FINISHED
    assert [trial.state for trial in _trials(path)] == [TrialState.RUNNING]


@pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes", "gp"])
def test_every_sampler_searches_and_is_repeated_by_its_seed(sampler, tmp_path):
    def drawn(name: str, seed: int) -> list[Any]:
        search = _search(tmp_path / name, seed=seed, sampler=sampler, startup=2)
        points = []
        for index in range(6):
            points.append(search.suggest(f"{index}"))
            _end(search, f"{index}", 1 - abs(points[-1]["ratio"] - 0.2))
        return points

    first = drawn("a.db", 1)
    assert all(0 <= point["ratio"] <= 0.5 and point["init"] in ("normal", "magnitude") for point in first)
    assert len({point["ratio"] for point in first}) == 6
    assert first == drawn("b.db", 1) != drawn("c.db", 2)


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp"])
def test_two_objectives_are_both_told_and_searched(sampler, path):
    search = _search(path, sampler=sampler, startup=2, objectives=2)
    for index in range(6):
        ratio = search.suggest(f"{index}")["ratio"]
        _report(search, f"{index}", 0.5)  # Optuna takes none, and none is a mistake
        search.on_trial_complete(f"{index}", Ended(StopReason.COMPLETED, 1 - ratio, _evaluation(10, ratio)).to_tune())
    search.suggest("stopped")
    search.on_trial_complete("stopped", Ended(StopReason.BELOW_FFT, 0.1, _evaluation(10, 0.2)).to_tune())
    search.suggest("diverged")
    _diverge(search, "diverged")
    *complete, stopped, diverged = _trials(path)
    assert all(trial.values == [1 - trial.params["ratio"], trial.params["ratio"]] for trial in complete)
    assert stopped.values == [0.1, 0.2]
    assert diverged.values == [0.1, diverged.params["ratio"]]
    # What one objective gains the other loses.
    study = optuna.load_study(study_name=STUDY_NAME, storage=f"sqlite:///{path}")
    assert len({trial.params["ratio"] for trial in complete}) > 3
    assert {trial.number for trial in complete} <= {trial.number for trial in study.best_trials}


def test_a_trial_that_tune_ended_is_told_as_any(path):
    search = _search(path)
    search.suggest("a")
    search.on_trial_complete("a", Evaluated(_evaluation(10), 0.5).to_tune())
    (trial,) = _trials(path)
    assert (trial.state, trial.value, trial.user_attrs["stopped_reason"]) == (TrialState.COMPLETE, 0.5, "pruned")


def test_optunas_own_tools_have_all_trials_to_work_with(path):
    search = _search(path)
    for index in range(8):
        ratio = search.suggest(f"{index}")["ratio"]
        _report(search, f"{index}", 0.1, 1 - ratio)
        _end(search, f"{index}", 1 - ratio, ("plateau", "below_fft")[index % 2])
    study = optuna.load_study(study_name=STUDY_NAME, storage=f"sqlite:///{path}")
    importance = optuna.importance.get_param_importances(study)
    assert importance["ratio"] > importance["init"]
    assert study.best_value == max(1 - trial.params["ratio"] for trial in study.trials)
    contour = optuna.visualization.plot_contour(study, params=["ratio", "init"])
    assert contour.data[0].type == "contour"


def test_a_search_goes_on_with_a_study_and_gives_no_point_twice(path):
    _end(first := _search(path, startup=1), _first(first), 0.5)
    again = build_search(LocalStudy(path), SPACE, [], "tpe", 1, 1)
    assert again.suggest("b") != PRESET
    _end(again, "b", 0.6)
    assert [trial.value for trial in _trials(path)] == [0.5, 0.6]


def _first(search: StudySearch) -> str:
    search.suggest("a")
    return "a"


def test_the_file_says_at_once_that_a_trial_has_begun_or_ended(path):
    search = _search(path)
    search.suggest("a")
    assert [trial.state for trial in _trials(path)] == [TrialState.RUNNING]
    _end(search, "a", 0.5)
    assert [trial.state for trial in _trials(path)] == [TrialState.COMPLETE]


def test_the_file_is_never_behind_what_tune_has_saved(path, tmp_path):
    search = _search(path)
    search.suggest("a")
    _report(search, "a", 0.3, 0.4)
    search.save(str(tmp_path / "snapshot"))
    assert _trials(path)[0].intermediate_values == {0: 0.3, 10: 0.4}


def test_a_study_that_is_not_that_of_the_search_is_refused(path, tmp_path):
    search = _search(path)
    search.suggest("a")
    search.suggest("b")
    search.save(str(tmp_path / "snapshot"))
    _search(path).suggest("a")  # another study has taken its place
    with pytest.raises(Unusable, match=r"no trials \[1\]"):
        _restored(path, tmp_path / "snapshot")
