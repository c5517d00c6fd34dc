"""A trial whose workers hang while the budget runs out."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray.cloudpickle

from mft_ray.config import parse_config
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.prepare import make_ready
from mft_ray.searches.optuna_search import METRIC
from mft_ray.searches.trial import MaskTrial, TrialPlan
from mft_ray.training.job import Evaluation, Outcome
from mft_ray.workers.environment import share

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class SleepAt:
    """A stop rule that comes to no decision at one step."""

    step: int

    def __call__(self, history: Sequence[Evaluation], total_steps: int) -> str | None:
        if history[-1].step == self.step:
            time.sleep(3600)
        return None


class Trial(MaskTrial):
    """A trial that this process runs itself, without Tune."""

    trial_id = "abc"

    def __init__(self) -> None:
        pass


@pytest.fixture
def folder(ray_cluster: None, tiny: dict[str, Any], tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


@pytest.fixture
def trial(folder: RunFolder, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Trial]:
    # Workers cannot import this file.
    ray.cloudpickle.register_pickle_by_value(__import__(__name__))
    tiny["search"]["budget"] = {"hours": 1, "grace_minutes": 0.03}
    config = parse_config(tiny)
    start = make_ready(config, folder)
    rival = folder.work / "rival.json"
    rival.write_text(json.dumps([0.0] * 40))
    monkeypatch.setenv("HF_TOKEN", "of the driver")
    _keeper = share()
    monkeypatch.setenv("HF_TOKEN", "of the node")
    made = Trial()
    plan = TrialPlan(config, str(folder.root), start, "", None, str(rival), SleepAt(20))  # type: ignore[arg-type]
    made.setup({"ratio": 0.2}, plan)
    assert os.environ["HF_TOKEN"] == "of the driver"
    yield made
    made.cleanup()


def test_a_spent_budget_ends_a_trial_that_hangs_with_the_best_it_had(trial: Trial, folder: RunFolder) -> None:
    steps = [trial.step()["step"] for _ in range(3)]
    assert steps == [0, 10, 20]
    (folder.work / "budget-spent").touch()
    began = time.monotonic()
    ended = trial.step()
    assert time.monotonic() - began < 30
    assert (ended["stopped_reason"], ended["done"], ended["step"]) == ("cancelled", True, 20)
    outcome = Outcome.load(folder.trial("abc") / "outcome.json")
    assert [each.step for each in outcome.history] == steps
    assert outcome.stopped_reason == "cancelled"
    assert outcome.best_evaluation is not None
    assert outcome.score == outcome.best_evaluation.score == max(each.score for each in outcome.history)
    assert ended[METRIC] == outcome.score
    assert (folder.trial("abc") / "mask.safetensors").exists()
    assert not (folder.trial("abc") / "checkpoints").exists()


def test_what_this_process_has_not_seen_is_not_claimed(trial: Trial, folder: RunFolder) -> None:
    for _ in range(3):
        trial.step()
    progress = folder.trial("abc") / "progress.json"
    progress.write_text(json.dumps({**json.loads(progress.read_text()), "step": 30}))
    (folder.work / "budget-spent").touch()
    assert math.isnan(trial.step()[METRIC])
    outcome = Outcome.load(folder.trial("abc") / "outcome.json")
    assert (outcome.best, outcome.score) == (None, None)
