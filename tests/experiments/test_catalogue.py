"""What each experiment compares, without running any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mft_ray.comparison.run import check_rows
from mft_ray.config import Config, load_config, parse_config
from mft_ray.errors import UserError
from mft_ray.experiments.catalogue import EXPERIMENTS, Panel, groups

SPACES = Path(__file__).parent.parent.parent / "tune_spaces"
MASK = {"init": "magnitude", "schedule": "anneal"}


@pytest.fixture
def config(tiny: dict[str, Any]) -> Config:
    """A configuration whose comparison says how masks and LoRA train."""
    methods = {"mft": {"mask": MASK, "train": {"lr": 0.1}}, "lora": {"lora": {"rank": 2}}}
    return parse_config({**tiny, "compare": {"methods": methods}, "experiment": {"ratios": [0.1, 0.5]}})


def panels(name: str, config: Config, depth: int = 8) -> list[Panel]:
    return EXPERIMENTS[name].panels(config, depth)


def test_methods_are_as_the_comparison_says(config: Config) -> None:
    [panel] = panels("curves", config)
    assert panel.rows == {
        "continued_fft": {},
        "lora": {"lora": {"rank": 2}},
        "random_mask": {},
        "l1_mask": {},
        "mft": {"mask": MASK, "train": {"lr": 0.1}},
    }
    [cost] = panels("cost", config)
    assert cost.rows.keys() == panel.rows.keys() | {"wanda_mask", "movement"}


def test_masks_differ_in_one_setting(config: Config) -> None:
    [panel] = panels("ratio", config)
    assert panel.x == {"ratio 0.1": 0.1, "ratio 0.5": 0.5}
    for name, row in panel.rows.items():
        assert row == {"method": "mft", "train": {"lr": 0.1}, "mask": {**MASK, "ratio": panel.x[name]}}
    [scope] = panels("scope", config)
    assert [row["mask"].get("scope") for row in scope.rows.values()] == ["matrix", "layer", "model", None]
    # At its start the threshold removes as many as the ratio does: Φ(-1.2816) = 0.1, times the scores' deviation.
    assert scope.rows["signed threshold"]["mask"]["threshold"] == pytest.approx(-1.28155 * 0.02, rel=1e-4)


def test_layer_groups_cover_the_model_once(config: Config) -> None:
    assert groups(4, 8) == ["0-3", "4-7"]
    assert groups(4, 10) == ["0-3", "4-7", "8-9"]
    ones, twos = panels("layers", config)
    assert [row["mask"]["layers"] for row in twos.rows.values()] == ["0-1", "2-3", "4-5", "6-7"]
    assert len(ones.rows) == 8
    paper = panels("layers", config, depth=32)
    assert [len(panel.rows) for panel in paper] == [8, 4]  # groups of 4 and of 8 layers, as in figure 3
    config.experiment.group_sizes = [16]
    with pytest.raises(UserError, match="has 16, and the model has 8 decoder layers"):
        panels("layers", config)


def test_shares_of_the_data(config: Config) -> None:
    found = panels("data", config)
    assert [panel.changes["data"]["n_train"] for panel in found] == [6, 15, 30, 60]
    assert [panel.x["mft"] for panel in found] == [0.1, 0.25, 0.5, 1.0]
    config.data.n_train = None
    with pytest.raises(UserError, match=r"set it to a number"):
        panels("data", config)


def test_transfer_judges_each_mask_on_all_domains(tiny: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="at least two domains"):
        panels("transfer", parse_config(tiny))
    found = panels("transfer", load_config(SPACES / "paper" / "llama3.1-8b-math.yaml"), depth=32)
    tasks = {panel.name: panel.changes["evaluation"] for panel in found}
    assert tasks["math"] == {"tasks": ["gsm8k", "math"], "other_tasks": ["humaneval", "humaneval_plus", "ifeval"]}
    assert {panel.changes["data"]["task"] for panel in found} == {"math", "coding", "instruction"}
    toy = panels("transfer", load_config(SPACES / "experiments" / "toy.yaml"))
    assert [(panel.name, panel.judged_on) for panel in toy] == [
        ("addition", ("subtraction",)),
        ("subtraction", ("addition",)),
    ]


def test_recipes_are_the_comparisons_rows_on_every_domain() -> None:
    config = load_config(SPACES / "experiments" / "recipes.yaml")
    found = panels("recipes", config)
    assert [panel.changes for panel in found] == [{}, {"data": {"operations": "-"}}]
    assert all(panel.rows == config.compare.methods for panel in found)
    # Each can be trained, the mask without a ratio too.
    check_rows(config)
