from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mft_ray.masking import MaskSettings
from mft_ray.masking.schedule import full_ratio_reached, share_at, temperature_at

unit = st.floats(0, 1)
fractions = st.floats(0.001, 1)
rising = st.sampled_from(["anneal", "linear"])


@given(unit)
def test_constant_is_constant(progress: float) -> None:
    settings = MaskSettings(schedule="constant")
    assert share_at(settings, progress) == 1.0
    assert full_ratio_reached(settings, progress)


@given(rising, fractions, unit, unit)
def test_a_rising_share_never_falls_nor_overshoots(schedule: str, fraction: float, one: float, other: float) -> None:
    settings = MaskSettings(schedule=schedule, anneal_fraction=fraction)  # type: ignore[arg-type]
    early, late = sorted((one, other))
    assert 0 <= share_at(settings, early) <= share_at(settings, late) <= 1
    if full_ratio_reached(settings, late):
        assert share_at(settings, late) == 1


@given(rising, fractions)
def test_a_rising_share_starts_at_nothing_and_ends_at_exactly_all(schedule: str, fraction: float) -> None:
    settings = MaskSettings(schedule=schedule, anneal_fraction=fraction)  # type: ignore[arg-type]
    assert share_at(settings, 0.0) == 0.0
    assert not full_ratio_reached(settings, 0.0)
    assert share_at(settings, fraction) == share_at(settings, 1.0) == 1.0
    assert full_ratio_reached(settings, fraction)


def test_anneal_is_the_cubic_and_linear_a_line() -> None:
    for schedule, share in (("anneal", 1 - 0.75**3), ("linear", 0.25)):
        settings = MaskSettings(schedule=schedule, anneal_fraction=0.5)  # type: ignore[arg-type]
        assert share_at(settings, 0.125) == pytest.approx(share)


@pytest.mark.parametrize("schedule", ["anneal", "linear"])
def test_progress_outside_the_run_is_held_at_its_ends(schedule: str) -> None:
    settings = MaskSettings(schedule=schedule)  # type: ignore[arg-type]
    assert share_at(settings, -1.0) == 0.0
    assert share_at(settings, 2.0) == 1.0


def test_the_temperature_falls_in_a_line_to_exactly_nothing() -> None:
    settings = MaskSettings(hardness="soft", temperature=0.5, init_scale=0.04)
    found = [temperature_at(settings, progress) for progress in (-1.0, 0.0, 0.25, 1.0, 2.0)]
    assert found == pytest.approx([0.02, 0.02, 0.015, 0.0, 0.0])
    assert temperature_at(settings, 1.0) == 0.0
