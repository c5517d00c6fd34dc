"""What searches propose, played against responses: the product's sampler must stay better than drawing at random."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
import search_quality as quality
from response import MadeUp, Recorded

from mft_ray.config import Config, load_config
from mft_ray.searches.space import points_to_evaluate

RECORDING = Path(quality.__file__).parent / "results" / "recordings" / "quickstart-grid.json"


@pytest.fixture(scope="module")
def config() -> Config:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return quality.config_of(MadeUp())


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return Recorded(RECORDING)


def test_the_grid_lies_in_the_quickstarts_space(tmp_path: Path) -> None:
    tree = quality.grid()
    path = tmp_path / "grid.yaml"
    path.write_text(json.dumps(tree))
    points = points_to_evaluate(load_config(path), quality.DEPTH)
    assert len(points) == tree["search"]["trials"] == 181


def test_a_recorded_trial_is_what_was_recorded(recorded: Recorded) -> None:
    rows = [row for row in json.loads(RECORDING.read_text()) if row["config"]["ratio"] != 0.1]  # the preset's
    for row in rows[:20]:
        if row["config"]["lr"] in recorded.rates:
            found = recorded.curve(row["config"], seed=0)
            pairs = zip(found, row["curve"], strict=True)
            offset = {round(each.score - kept[1], 9) for each, kept in pairs if kept[2]}
            assert len(offset) == 1  # the seed's noise, the same at every evaluation
            assert abs(offset.pop()) < 0.02
    assert recorded.worst < recorded.best <= 1


def test_between_two_recorded_trials_lies_their_mean(recorded: Recorded) -> None:
    point = {"layers": "0-3", "init": "magnitude", "schedule": "anneal", "lr": 1e-3}
    low, middle, high = (recorded.true({**point, "ratio": ratio}, 1000) for ratio in (0.2, 0.35, 0.5))
    assert min(low, high) - 1e-9 <= middle <= max(low, high) + 1e-9


@pytest.mark.parametrize("told", ["best", "projection", "below_fft pruned", "pruned"])
def test_every_setting_plays_to_the_end(told: str, recorded: Recorded) -> None:
    for response in (recorded, MadeUp()):
        config = quality.config_of(response)
        made = quality.row(quality.Setting("tpe", told), response, config, repetitions=2, trials=9)
        assert len(made["regret"]) == 9
        assert all(regret >= -1e-9 for regret in made["regret"])
        assert "| tpe |" in quality.line(made, made)


@pytest.mark.slow
def test_tpe_needs_at_most_half_of_what_drawing_at_random_does(config: Config) -> None:
    at_random, tpe = (
        quality.row(quality.Setting(sampler, "best"), MadeUp(), config, repetitions=60, trials=32)["regret"]
        for sampler in ("random", "tpe")
    )
    assert (quality.as_good_as(tpe, at_random[31]) or 99) <= 16


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["gp", "cmaes"])
def test_no_sampler_is_worse_than_drawing_at_random(sampler: str, config: Config) -> None:
    repetitions = 8 if sampler == "gp" else 40
    at_random, made = (
        quality.row(quality.Setting(name, "best"), MadeUp(), config, repetitions, trials=24)["regret"]
        for name in ("random", sampler)
    )
    assert made[23] <= at_random[23]
