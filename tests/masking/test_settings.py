from __future__ import annotations

import math
from typing import Any

import pytest

from mft_ray.errors import UserError
from mft_ray.masking import MaskSettings, parse_layers, parse_pattern


def test_the_defaults_are_the_papers_preset() -> None:
    settings = MaskSettings()
    assert (settings.ratio, settings.init, settings.init_scale) == (0.1, "normal", 0.02)
    assert (settings.schedule, settings.target, settings.scope) == ("constant", "both", "matrix")
    assert (settings.rule, settings.hardness, settings.removes, settings.pattern) == ("ratio", "hard", "weight", None)


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("ratio", 1.0, r"masking ratio 1.0 is outside \[0, 1\)"),
        ("ratio", -0.01, "masking ratio -0.01"),
        ("ratio", math.nan, "masking ratio nan"),
        ("ratio_attn", 1.0, r"masking ratio 1.0 is outside \[0, 1\)"),
        ("ratio_mlp", -0.5, "masking ratio -0.5"),
        ("target", "head", "target 'head' is unknown; choose one of attn, mlp, both"),
        ("scope", "head", "scope 'head' is unknown; choose one of matrix, layer, model"),
        ("rule", "coin", "rule 'coin' is unknown; choose one of ratio, movement, threshold"),
        ("init", "zeros", "init 'zeros' is unknown; choose one of normal, magnitude, wanda, constant"),
        ("schedule", "cosine", "schedule 'cosine' is unknown; choose one of constant, anneal, linear"),
        ("hardness", "firm", "hardness 'firm' is unknown; choose one of hard, soft"),
        ("removes", "rows", "removes 'rows' is unknown; choose one of weight, delta"),
        ("layers", "7-4", "'7-4' ends before it starts"),
        ("layers", "four", "'four' is not of the form first-last"),
        ("layers", "-1", "'-1' is not of the form"),
        ("layers", "", "'' is not of the form"),
        ("init_scale", 0.0, "init_scale must be above 0, got 0.0"),
        ("init_scale", math.nan, "init_scale must be above 0"),
        ("temperature", 0.0, "temperature must be above 0, got 0.0"),
        ("anneal_fraction", 0.0, r"anneal_fraction must be in \(0, 1\], got 0.0"),
        ("anneal_fraction", 1.1, "anneal_fraction must be in"),
        ("pattern", "4:2", "'4:2' is not of the form N:M with 0 < N < M"),
        ("pattern", "0:4", "'0:4' is not of the form N:M"),
        ("pattern", "4:4", "'4:4' is not of the form N:M"),
        ("pattern", "half", "'half' is not of the form N:M"),
        ("pattern", "2:4", "pattern 2:4 removes 0.5 of all weights, but the ratio is 0.1. Set ratio 0.5"),
    ],
)
def test_what_no_mask_can_be_is_refused(setting: str, value: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        MaskSettings(**{setting: value})


@pytest.mark.parametrize("own", [{"ratio_attn": 0.4}, {"ratio_mlp": 0.0}])
def test_a_pattern_has_one_ratio(own: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"Set ratio 0\.5, and no other for attn or mlp"):
        MaskSettings(0.5, pattern="2:4", **own)  # type: ignore[arg-type]
    MaskSettings(0.5, pattern="2:4", ratio_attn=0.5)


def test_a_pattern_is_hard() -> None:
    # Every group of M has its own threshold: around a common one, training would see another mask than evaluation.
    with pytest.raises(UserError, match=r"pattern 2:4 ranks every 4 weights by themselves.*Use hardness hard"):
        MaskSettings(0.5, pattern="2:4", hardness="soft")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("schedule", "anneal"),
        ("schedule", "linear"),
        ("scope", "model"),
        ("pattern", "2:4"),
        ("ratio_attn", 0.2),
        ("ratio_mlp", 0.2),
        ("hardness", "soft"),
    ],
)
def test_a_threshold_takes_no_setting_of_a_ratio(setting: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"rule threshold has no ratio, so {setting} cannot be set"):
        MaskSettings(rule="threshold", **{setting: value})


def test_a_half_without_a_ratio_of_its_own_has_the_common_one() -> None:
    assert MaskSettings(0.3, ratio_mlp=0.0).ratios == {None: 0.3, "attn": 0.3, "mlp": 0.0}


@pytest.mark.parametrize(
    ("text", "group"), [("4-7", range(4, 8)), ("5", range(5, 6)), (" 0 - 0 ", range(0, 1)), ("10-31", range(10, 32))]
)
def test_layer_groups_are_inclusive(text: str, group: range) -> None:
    assert parse_layers(text) == group


def test_a_pattern_says_how_many_are_kept_of_how_many() -> None:
    assert parse_pattern(" 2 : 4 ") == (2, 4)
    assert parse_pattern("1:16") == (1, 16)


def test_movement_is_hard() -> None:
    with pytest.raises(UserError, match=r"movement ranks signed scores.*Use hardness hard, or rule ratio"):
        MaskSettings(rule="movement", hardness="soft")
