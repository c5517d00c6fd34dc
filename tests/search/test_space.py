"""What the search may choose from, and the points that are always tried."""

from __future__ import annotations

from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from mft_ray.config import parse_config
from mft_ray.errors import UserError
from mft_ray.masking import MaskSettings, parse_layers
from mft_ray.search.space import (
    PAPER,
    apply,
    build_space,
    layer_groups,
    paper_layers,
    points_to_evaluate,
)

DEPTHS = [1, 2, 3, 6, 8, 12, 30, 32]


def _config(tiny, **search: Any):
    return parse_config({**tiny, "search": {**tiny["search"], **search}})


@pytest.mark.parametrize("depth", DEPTHS)
def test_paper_preset_comes_first_and_lies_inside_the_space(tiny, depth):
    config = _config(tiny)
    space, (preset,) = build_space(config, depth), points_to_evaluate(config, depth)
    assert preset == {**PAPER, "layers": paper_layers(depth)[0]}
    assert preset["ratio"] == 0.1
    assert preset["lr"] == 2e-5
    assert space.keys() == preset.keys()
    for knob, value in preset.items():
        assert space[knob]._contains(space[knob].to_internal_repr(value)), knob


def test_a_space_that_leaves_the_preset_out_is_widened_to_hold_it(tiny):
    narrow = {
        "ratio": {"low": 0.3, "high": 0.5},
        "layers": ["0-1"],
        "lr": {"low": 1e-4, "high": 1e-2, "log": True},
        "target": ["mlp"],
        "init": ["magnitude"],
        "schedule": ["anneal"],
    }
    space = build_space(_config(tiny, space=narrow), 8)
    assert space["ratio"] == FloatDistribution(0.1, 0.5)
    assert space["lr"] == FloatDistribution(2e-5, 1e-2, log=True)
    assert space["layers"] == CategoricalDistribution(["0-1", "4-7"])
    assert space["target"] == CategoricalDistribution(["mlp", "both"])
    assert space["init"] == CategoricalDistribution(["magnitude", "normal"])
    assert space["schedule"] == CategoricalDistribution(["anneal", "constant"])


def test_a_list_of_numbers_is_a_choice_among_them(tiny):
    space = build_space(_config(tiny, space={"ratio": [0.2, 0.4], "lr": [1e-3]}), 8)
    assert space["ratio"] == CategoricalDistribution([0.2, 0.4, 0.1])
    assert space["lr"] == CategoricalDistribution([1e-3, 2e-5])


def test_layer_groups_of_the_papers_depth():
    groups = layer_groups(32)
    assert groups[:8] == ["0-3", "4-7", "8-11", "12-15", "16-19", "20-23", "24-27", "28-31"]
    assert groups[8:] == ["0-15", "16-31", "0-31"]


@pytest.mark.parametrize("depth", DEPTHS)
def test_layer_groups_lie_in_the_model_and_cover_it(depth):
    groups = layer_groups(depth)
    assert len(set(groups)) == len(groups)
    assert {layer for group in groups for layer in parse_layers(group)} == set(range(depth))
    assert f"0-{depth - 1}" in groups


@pytest.mark.parametrize("depth", DEPTHS)
def test_paper_layers_exist_in_any_model(depth):
    groups = paper_layers(depth)
    assert all(parse_layers(group)[-1] < depth for group in groups)
    assert (groups[0] == "4-7") is (depth >= 8)
    assert ("20-23" in groups) is (depth >= 24)


@pytest.mark.parametrize(
    ("trials", "depth", "groups"),
    [
        (8, 32, ["4-7"]),
        (16, 32, ["4-7", "20-23"]),
        (24, 32, ["4-7", "20-23", "0-3"]),
        (200, 32, ["4-7", "20-23", "0-3"]),
        (200, 12, ["4-7", "0-3"]),
        (200, 4, ["2-3"]),
    ],
)
def test_the_papers_best_groups_are_tried_where_trials_are_many(tiny, trials, depth, groups):
    config = _config(tiny, trials=trials, extra_points=[{"ratio": 0.3}])
    preset, own, *further = points_to_evaluate(config, depth)
    assert own == {**preset, "ratio": 0.3}
    assert [point["layers"] for point in (preset, *further)] == groups
    assert all({**point, "layers": preset["layers"]} == preset for point in further)
    space = build_space(config, depth)
    assert set(groups) <= set(space["layers"].choices)


@pytest.mark.parametrize("layers", ["4-9", "8", "0-8"])
def test_a_group_that_the_model_lacks_is_refused_and_what_it_has_is_said(tiny, layers):
    with pytest.raises(UserError, match=r"8 decoder layers \(0-7\)") as caught:
        build_space(_config(tiny, space={"layers": ["0-3", layers]}), 8)
    assert layers in str(caught.value)


@pytest.mark.parametrize("layers", ["3-1", "first", "-1", "1,2", ""])
def test_a_group_that_is_none_is_refused(tiny, layers):
    with pytest.raises(UserError, match="layer group"):
        build_space(_config(tiny, space={"layers": [layers]}), 8)


def test_extra_points_follow_the_preset_and_take_its_values_where_they_are_silent(tiny):
    config = _config(tiny, extra_points=[{"ratio": 0.7, "lr": 0.5}, {"layers": "0-7"}])
    preset, first, second = points_to_evaluate(config, 8)
    assert first == {**preset, "ratio": 0.7, "lr": 0.5}
    assert second == {**preset, "layers": "0-7"}
    space = build_space(config, 8)
    assert space["ratio"].high == 0.7
    assert space["lr"].high == 0.5
    assert "0-7" in space["layers"].choices


def test_a_layer_that_yaml_reads_as_a_number_is_the_same_group(tiny):
    config = _config(tiny, extra_points=[{"layers": 4}])
    assert points_to_evaluate(config, 8)[1]["layers"] == "4"
    assert set(map(type, build_space(config, 8)["layers"].choices)) == {str}


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"sparsity": 0.9}, "unknown knob sparsity; known: init, layers, lr, ratio, schedule, target"),
        ({"layers": "4-9"}, "4-9 reaches beyond"),
        ({"ratio": 1.0}, r"ratio 1.0 is outside \[0, 1\)"),
        ({"target": "heads"}, "target 'heads' is unknown; choose one of attn, mlp, both"),
        ({"init": "zeros"}, "init 'zeros' is unknown"),
        ({"schedule": "cosine"}, "schedule 'cosine' is unknown"),
        ({"lr": 0}, "lr 0; it must be a number above 0"),
        ({"lr": "fast"}, "lr 'fast'; it must be a number"),
        ({"ratio": "10%"}, "ratio '10%'; it must be a number"),
        ({"ratio": True}, "ratio"),
    ],
)
def test_bad_extra_points_are_refused(tiny, point, message):
    with pytest.raises(UserError, match=message):
        build_space(_config(tiny, extra_points=[point]), 8)


def test_a_masks_trial_takes_what_was_chosen_and_keeps_the_rest(tiny):
    base = parse_config({**tiny, "mask": {"init_scale": 0.5, "anneal_fraction": 0.25, "ratio": 0.3}})
    point = {"ratio": 0.2, "layers": "4-7", "target": "mlp", "init": "magnitude", "schedule": "anneal", "lr": 1.0}
    chosen = apply(base, point)
    assert chosen.train == base.train.model_copy(update={"lr": 1.0})
    assert chosen.mask == MaskSettings(
        ratio=0.2,
        layers="4-7",
        target="mlp",
        init="magnitude",
        schedule="anneal",
        init_scale=0.5,
        anneal_fraction=0.25,
    )


def test_a_pattern_fixes_the_ratio(tiny):
    config = parse_config({**tiny, "mask": {"pattern": "2:4", "ratio": 0.5}})
    assert build_space(config, 8)["ratio"] == CategoricalDistribution([0.5])
    (preset,) = points_to_evaluate(config, 8)
    assert apply(config, preset).mask.pattern == "2:4"


def test_a_mask_without_a_ratio_cannot_be_searched(tiny):
    with pytest.raises(UserError, match=r"mask\.rule threshold has none"):
        build_space(parse_config({**tiny, "mask": {"rule": "threshold"}}), 8)
