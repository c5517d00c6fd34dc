from __future__ import annotations

import math
from typing import Any

import pytest

from mft_ray.errors import UserError
from mft_ray.masking import MaskSettings, parse_layers


def test_the_defaults_are_the_papers_preset() -> None:
    settings = MaskSettings()
    assert (settings.ratio, settings.init, settings.init_scale) == (0.1, "normal", 0.02)
    assert (settings.schedule, settings.target) == ("constant", "both")


@pytest.mark.parametrize(
    ("knob", "value", "says"),
    [
        ("ratio", 1.0, r"masking ratio 1.0 is outside \[0, 1\)"),
        ("ratio", -0.01, "masking ratio -0.01"),
        ("ratio", math.nan, "masking ratio nan"),
        ("target", "head", "target 'head' is unknown; choose one of attn, mlp, both"),
        ("init", "zeros", "init 'zeros' is unknown; choose one of normal, magnitude, constant"),
        ("schedule", "cosine", "schedule 'cosine' is unknown; choose one of constant, anneal"),
        ("layers", "7-4", "'7-4' ends before it starts"),
        ("layers", "four", "'four' is not of the form first-last"),
        ("layers", "-1", "'-1' is not of the form"),
        ("layers", "", "'' is not of the form"),
        ("init_scale", 0.0, "init_scale must be above 0, got 0.0"),
        ("init_scale", math.nan, "init_scale must be above 0"),
        ("anneal_fraction", 0.0, r"anneal_fraction must be in \(0, 1\], got 0.0"),
        ("anneal_fraction", 1.1, "anneal_fraction must be in"),
    ],
)
def test_what_no_mask_can_be_is_refused(knob: str, value: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        MaskSettings(**{knob: value})


@pytest.mark.parametrize(
    ("text", "group"), [("4-7", range(4, 8)), ("5", range(5, 6)), (" 0 - 0 ", range(0, 1)), ("10-31", range(10, 32))]
)
def test_layer_groups_are_inclusive(text: str, group: range) -> None:
    assert parse_layers(text) == group
