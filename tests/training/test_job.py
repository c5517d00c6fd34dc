from __future__ import annotations

import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mft_ray.config import EvaluationConfig, LoraConfig, ScalingConfig, TrainConfig
from mft_ray.masking import MaskSettings
from mft_ray.training.job import Cost, Evaluation, Outcome, Stop, StopReason, TrainJob, best_index
from mft_ray.utils.files import Damaged

START = Evaluation(0, -1.5, 0.1, 0, 0.5, math.nan, 0.0, False)
LATER = Evaluation(10, -1.25, 0.1, 640, 2.5, 1.75, 0.1, True)


def job(method: Any, mask: MaskSettings | None) -> TrainJob:
    return TrainJob(method, "model", "data", "out", TrainConfig(), EvaluationConfig(), ScalingConfig(), mask=mask)


def test_an_outcome_comes_back_as_it_went(tmp_path: Path) -> None:
    path = tmp_path / "outcome.json"
    cost = Cost(640, 1e9, 2.5, 2e8, 1000, 4000)
    stop = Stop(StopReason.BELOW_FFT, 10, 30, -0.2, 0.0, 0.05, 0.95, best=-0.3, projected=-0.2)
    Outcome("plateau", [START, LATER], 1, cost=cost, stop=stop).save(path)
    loaded = Outcome.load(path)
    assert (loaded.cost, loaded.stop) == (cost, stop)
    assert loaded.stopped_reason == "plateau"
    assert loaded.best_evaluation == loaded.history[1] == LATER
    assert math.isnan(loaded.history[0].loss)
    assert loaded.history[0].score == START.score
    assert [each.name for each in tmp_path.iterdir()] == ["outcome.json"]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"stopped_reason": "completed", "history": [], "best": null}']
)
def test_an_outcome_that_is_damaged_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "outcome.json"
    path.write_text(content)
    with pytest.raises(Damaged, match=str(path)):
        Outcome.load(path)


def test_an_outcome_without_an_eligible_evaluation() -> None:
    assert Outcome("pruned", [START], best_index([START])).best_evaluation is None


def test_the_best_is_eligible_and_the_earliest_of_equals() -> None:
    def at(step: int, score: float, eligible: bool = True) -> Evaluation:
        return Evaluation(step, score, 0.1, 0, 0.0, 0.0, 0.1, eligible)

    assert best_index([at(0, 9, False), at(1, 2), at(2, 3), at(3, 3), at(4, 1)]) == 2
    assert best_index([]) is None


def test_a_job_trains_one_thing() -> None:
    assert job("mft", MaskSettings()).frozen
    assert not job("fft", None).frozen
    with pytest.raises(ValueError, match="a mask or an adapter, not both"):
        replace(job("mft", MaskSettings()), lora=LoraConfig())


def test_a_job_travels_to_workers() -> None:
    sent = job("mft", MaskSettings(layers="0-1"))
    assert pickle.loads(pickle.dumps(sent)) == sent


def test_a_job_of_unknown_length_is_refused() -> None:
    train = TrainConfig(epochs=2)
    with pytest.raises(ValueError, match="epochs must have been turned into steps"):
        TrainJob("fft", "model", "data", "out", train, EvaluationConfig(), ScalingConfig())
    TrainJob("fft", "model", "data", "out", train.in_steps(60), EvaluationConfig(), ScalingConfig())
