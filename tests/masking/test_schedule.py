from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mft_ray.masking import MaskSettings, full_ratio_reached, ratio_at

unit = st.floats(0, 1)
ratios = st.floats(0, 0.999)
fractions = st.floats(0.001, 1)


@given(ratios, unit)
def test_constant_is_constant(ratio: float, progress: float) -> None:
    settings = MaskSettings(ratio=ratio, schedule="constant")
    assert ratio_at(settings, progress) == ratio
    assert full_ratio_reached(settings, progress)


@given(ratios, fractions, unit, unit)
def test_anneal_never_falls_nor_overshoots(ratio: float, fraction: float, one: float, other: float) -> None:
    settings = MaskSettings(ratio=ratio, schedule="anneal", anneal_fraction=fraction)
    early, late = sorted((one, other))
    assert 0 <= ratio_at(settings, early) <= ratio_at(settings, late) <= ratio
    if full_ratio_reached(settings, late):
        assert ratio_at(settings, late) == ratio


@given(ratios, fractions)
def test_anneal_starts_at_nothing_and_ends_exactly_at_the_ratio(ratio: float, fraction: float) -> None:
    settings = MaskSettings(ratio=ratio, schedule="anneal", anneal_fraction=fraction)
    assert ratio_at(settings, 0.0) == 0.0
    assert not full_ratio_reached(settings, 0.0)
    assert ratio_at(settings, fraction) == ratio_at(settings, 1.0) == ratio
    assert full_ratio_reached(settings, fraction)


def test_anneal_is_the_cubic() -> None:
    settings = MaskSettings(ratio=0.4, schedule="anneal", anneal_fraction=0.5)
    assert ratio_at(settings, 0.25) == pytest.approx(0.4 * (1 - 0.5**3))


def test_progress_outside_the_run_is_held_at_its_ends() -> None:
    settings = MaskSettings(ratio=0.4, schedule="anneal")
    assert ratio_at(settings, -1.0) == 0.0
    assert ratio_at(settings, 2.0) == 0.4
