"""What the search may choose from, and the points that are always tried."""

from __future__ import annotations

from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from mft_ray.config import SpaceConfig, parse_config
from mft_ray.config.params import apply
from mft_ray.errors import UserError
from mft_ray.masking import MaskSettings, parse_layers
from mft_ray.searches.space import (
    PAPER,
    build_space,
    layer_groups,
    left_out,
    paper_layers,
    points_to_evaluate,
    what_may_be_chosen,
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
    for parameter, value in preset.items():
        assert space[parameter]._contains(space[parameter].to_internal_repr(value)), parameter


NARROW = {
    "ratio": {"low": 0.3, "high": 0.5},
    "layers": ["0-1"],
    "lr": {"low": 1e-4, "high": 1e-2, "log": True},
    "target": ["mlp"],
    "init": ["magnitude"],
    "schedule": ["anneal"],
}


def test_the_space_is_a_bound_and_what_is_nearest_to_the_preset_is_tried_first(tiny):
    config = _config(tiny, space=NARROW, trials=200)
    space = build_space(config, 32)
    assert space["ratio"] == FloatDistribution(0.3, 0.5)
    assert space["lr"] == FloatDistribution(1e-4, 1e-2, log=True)
    assert [space[parameter].choices for parameter in ("layers", "target", "init", "schedule")] == [
        ("0-1",),
        ("mlp",),
        ("magnitude",),
        ("anneal",),
    ]
    nearest = {"ratio": 0.3, "lr": 1e-4, "layers": "0-1", "target": "mlp", "init": "magnitude", "schedule": "anneal"}
    # The paper's further groups lie outside as well.
    assert points_to_evaluate(config, 32) == [nearest]
    said = left_out(config, 32)
    assert "outside search.space" in said
    assert "ratio 0.3 instead of 0.1" in said
    assert "lr 0.0001 instead of 2e-05" in said


def test_nothing_is_said_where_the_space_holds_the_preset(tiny):
    assert left_out(_config(tiny), 8) is None


def test_a_list_of_numbers_is_a_choice_among_them(tiny):
    config = _config(tiny, space={"ratio": [0.2, 0.4], "lr": [1e-3, 1e-3]})
    space = build_space(config, 8)
    assert space["ratio"] == CategoricalDistribution([0.2, 0.4])
    assert space["lr"] == CategoricalDistribution([1e-3])
    assert points_to_evaluate(config, 8)[0]["ratio"] == 0.2


@pytest.mark.parametrize("parameter", SpaceConfig.model_fields)
def test_an_empty_list_is_refused(tiny, parameter):
    value = {"train.warmup": []} if parameter == "paths" else []
    with pytest.raises(UserError, match=r"search\.space\.(paths\.train\.warmup|" + parameter + r").*at least 1 item"):
        _config(tiny, space={parameter: value})


SETTINGS = {
    "train.warmup": {"low": 0, "high": 0.1},
    "train.batch_size": {"low": 8, "high": 32, "step": 8},
    "mask": {"scope": ["matrix", "layer"], "ratio": [0.2]},
    "train.dropout": [0, 0.1],
}


def test_any_setting_of_a_trial_is_searched_by_its_path(tiny):
    config = _config(tiny, space=SETTINGS)
    space = build_space(config, 8)
    assert space["train.warmup"] == FloatDistribution(0, 0.1)
    assert space["train.batch_size"] == IntDistribution(8, 32, step=8)
    assert space["mask.scope"] == CategoricalDistribution(["matrix", "layer"])
    assert space["ratio"] == CategoricalDistribution([0.2])  # mask.ratio has a short name
    assert "mask.ratio" not in space
    (first,) = points_to_evaluate(config, 8)
    assert (first["train.warmup"], first["train.batch_size"], first["mask.scope"]) == (0.03, 16, "matrix")
    point = {**first, "train.warmup": 0.07, "train.batch_size": 24, "mask.scope": "layer", "lr": 0.5}
    chosen = apply(config, point)
    assert (chosen.train.warmup, chosen.train.batch_size, chosen.train.lr) == (0.07, 24, 0.5)
    assert (chosen.mask.scope, chosen.mask.ratio) == ("layer", 0.2)
    assert chosen.train.steps == config.train.steps
    for_seeds = parse_config(config.model_dump())
    assert build_space(for_seeds, 8) == space


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            {"train.warm": [0.1]},
            r"train\.warm names no setting: train has no warm \(known there: .*warmup",
        ),
        ({"train": {"foo": {"low": 1, "high": 2}}}, "train has no foo"),
        ({"mask": {"scope": {"low": 0, "high": 1}}}, r"mask\.scope is no number; give a list"),
        (
            {"data.n_train": [10]},
            r"data\.n_train cannot be searched: .* mft are trained by mask and train",
        ),
        ({"lora.rank": [4]}, r"lora\.rank cannot be searched"),
        ({"scaling.zero_stage": [0, 1]}, "the same for every trial"),
        ({"ratio": [0.1], "mask.ratio": [0.2]}, r"space has mask\.ratio and ratio, which are the same setting"),
        ({"train.betas": [[0.9, 0.99]]}, "must be a number, a text, true, false or null"),
        ({"train.warmup": {"low": 0, "high": ".inf"}}, "warmup.high"),
    ],
)
def test_a_path_that_cannot_be_searched_is_refused_when_the_file_is_read(tiny, space, message):
    with pytest.raises(UserError, match=message):
        _config(tiny, space=space)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"train.warmup": {"low": 0, "high": 2}}, r"search\.space\.train\.warmup with 2\.0 cannot be: .*less than 1"),
        ({"train.optimizer": ["adamw", "sgd"]}, r"search\.space\.train\.optimizer with sgd cannot be"),
        ({"mask.hardness": ["hard", "soft"], "mask.rule": ["ratio", "movement"]}, "with soft beside .*with movement"),
        ({"mask.pattern": [None, "2:4"]}, r"search\.space\.mask\.pattern with 2:4 cannot be: .*ratio is 0\.1"),
        ({"train.steps": {"low": 10, "high": 100.5}}, r"train\.steps is a whole number"),
    ],
)
def test_every_value_is_held_against_what_it_would_make(tiny, space, message):
    with pytest.raises(UserError, match=message):
        list(what_may_be_chosen(_config(tiny, space=space), 8))


def test_what_may_be_chosen_is_every_value_and_every_pair(tiny):
    space = {**NARROW, "layers": ["0-1", "2-3"], "target": ["mlp", "attn"]}
    made = list(what_may_be_chosen(_config(tiny, space=space), 8))
    # The first point, four values beside it, and of two values of two settings each pair.
    assert len(made) == 1 + 4 + 6
    assert {(each.mask.layers, each.mask.target) for each in made} == {
        (layers, target) for layers in ("0-1", "2-3") for target in ("mlp", "attn")
    }


def test_epochs_can_be_searched_although_steps_are_known(tiny):
    config = _config(tiny, space={"train.epochs": [1, 2]})
    chosen = apply(config, {**points_to_evaluate(config, 8)[0], "train.epochs": 2})
    assert chosen.train.in_steps(160).steps == 20


def test_a_threshold_is_searched_in_the_place_of_a_ratio(tiny):
    config = parse_config(
        {
            **tiny,
            "mask": {"rule": "threshold"},
            "search": {"space": {"mask.threshold": {"low": -0.1, "high": 0.0}}, "trials": 8},
        }
    )
    (first,) = points_to_evaluate(config, 8)
    assert first.keys() == {"layers", "target", "lr", "init", "mask.threshold"}
    assert apply(config, {**first, "mask.threshold": -0.05}).mask.threshold == -0.05


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
    config = _config(tiny, extra_points=[{"ratio": 0.4, "train.lr": 5e-3}, {"layers": "0-7"}, {"ratio": 0.1}])
    preset, first, second = points_to_evaluate(config, 8)  # the third is the preset
    assert first == {**preset, "ratio": 0.4, "lr": 5e-3}
    assert second == {**preset, "layers": "0-7"}


def test_a_layer_that_yaml_reads_as_a_number_is_the_same_group(tiny):
    config = _config(tiny, extra_points=[{"layers": 4}], space={"layers": [4, "4-7"]})
    assert points_to_evaluate(config, 8)[1]["layers"] == "4"
    assert set(map(type, build_space(config, 8)["layers"].choices)) == {str}


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"sparsity": 0.9}, "unknown parameter sparsity; known: init, layers, lr, ratio, schedule, target"),
        ({"layers": "4-9"}, "4-9 reaches beyond"),
        ({"ratio": 1.0}, r"ratio 1.0 is outside \[0, 1\)"),
        ({"target": "heads"}, "target: got 'heads'; Input should be 'attn', 'mlp' or 'both'"),
        ({"init": "zeros"}, "init: got 'zeros'"),
        ({"schedule": "cosine"}, "schedule: got 'cosine'"),
        ({"lr": 0}, "lr 0; it must be a number above 0"),
        ({"lr": "fast"}, "lr 'fast'; it must be a number"),
        ({"ratio": "10%"}, "ratio '10%'; it must be a number"),
        ({"ratio": True}, "ratio"),
        ({"ratio": 0.7}, r"ratio 0.7, which lies outside search\.space\.ratio \(0\.02 to 0\.5\)"),
        ({"layers": "1-2"}, r"layers 1-2, which lies outside search\.space\.layers \(0-0, "),
        ({"target": "mlp"}, r"outside search\.space\.target \(both\)"),
    ],
)
def test_bad_extra_points_are_refused(tiny, point, message):
    with pytest.raises(UserError, match=message):
        points_to_evaluate(_config(tiny, extra_points=[point]), 8)


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
