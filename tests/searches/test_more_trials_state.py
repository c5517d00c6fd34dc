"""A study that is given more trials goes on with what it knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from mft_ray.runs.study.file import STUDY_NAME
from mft_ray.runs.study.live import LocalStudy
from mft_ray.searches.more_trials import continue_search
from mft_ray.searches.optuna_search import StudySearch, build_search
from mft_ray.searches.trial_report import Ended
from mft_ray.training.job import Evaluation, StopReason

SPACE = {"ratio": FloatDistribution(0.0, 0.5), "init": CategoricalDistribution(["normal", "magnitude"])}
POINTS = [{"ratio": 0.1, "init": "normal"}, {"ratio": 0.4, "init": "magnitude"}]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "study.db"


def trials(path: Path) -> list[FrozenTrial]:
    return optuna.load_study(study_name=STUDY_NAME, storage=f"sqlite:///{path}").trials


def run(search: StudySearch, *names: str) -> list[dict[str, Any]]:
    points = []
    for name in names:
        point = search.suggest(name)
        assert isinstance(point, dict)
        last = Evaluation(10, 0.5, 0.01, 640, 10.0, 0.1, point["ratio"], True)
        search.on_trial_complete(name, Ended(StopReason.COMPLETED, -abs(point["ratio"] - 0.3), last).to_tune())
        points.append(point)
    return points


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "cmaes"])
def test_nothing_is_tried_twice_and_the_study_is_one(path: Path, sampler: str) -> None:
    first = run(build_search(LocalStudy(path), SPACE, POINTS, sampler, 2, 0), *"abcd")
    second = run(continue_search(LocalStudy(path), sampler, 2, 0), *"efg")
    third = run(continue_search(LocalStudy(path), sampler, 2, 0), *"hi")
    assert first[:2] == POINTS
    assert [trial.params for trial in trials(path)] == [*first, *second, *third]
    assert {trial.state for trial in trials(path)} == {TrialState.COMPLETE}
    assert len({point["ratio"] for point in [*first, *second, *third]}) == 9


def test_what_is_added_depends_on_the_seed_and_what_there_is_alone(tmp_path: Path) -> None:
    def added(name: str, seed: int) -> list[dict[str, Any]]:
        run(build_search(LocalStudy(tmp_path / name), SPACE, POINTS, "random", 2, 0), *"abc")
        return run(continue_search(LocalStudy(tmp_path / name), "random", 2, seed), *"de")

    assert added("1.db", 0) == added("2.db", 0) != added("3.db", 1)


def test_given_points_that_were_not_tried_come_first(path: Path) -> None:
    run(build_search(LocalStudy(path), SPACE, POINTS, "random", 2, 0), "a")
    points = run(continue_search(LocalStudy(path), "random", 2, 0), "b", "c")
    assert points[0] == POINTS[1]
    assert points[1] not in POINTS


def test_a_trial_that_was_lost_is_failed_and_a_given_point_tried_all_the_same(path: Path) -> None:
    search = build_search(LocalStudy(path), SPACE, POINTS, "random", 2, 0)
    run(search, "a")
    assert search.suggest("lost") == POINTS[1]
    assert run(continue_search(LocalStudy(path), "random", 2, 0), "b") == [POINTS[1]]
    assert [trial.state for trial in trials(path)] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]


def test_two_objectives_go_on(path: Path) -> None:
    run(build_search(LocalStudy(path), SPACE, POINTS, "tpe", 2, 0, objectives=2), *"abc")
    run(continue_search(LocalStudy(path), "tpe", 2, 0, objectives=2), "d")
    assert [len(trial.values) for trial in trials(path)] == [2] * 4
