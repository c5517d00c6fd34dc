"""What a search may spend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mft_ray.config import BudgetConfig, parse_config
from mft_ray.errors import UserError
from mft_ray.searches import budget as module
from mft_ray.searches.budget import Budget, spent


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def budget(folder: Path, **limits: Any) -> Budget:
    return Budget(BudgetConfig.model_validate(limits), folder)


def test_without_limits_nothing_ends(tmp_path: Path, clock: Clock) -> None:
    free = budget(tmp_path)
    clock.now += 1e9
    free.note("a", 10**15)
    assert (free.reached(), free.left(), spent(tmp_path)) == (None, "", False)


@pytest.mark.parametrize(
    ("limits", "half", "words"),
    [
        ({"hours": 2}, "1 h 00 min", "2 h 00 min of wall time"),
        ({"tokens": 1000}, "500 tokens", "1,000 tokens"),
        ({"dollars": 6, "dollars_per_hour": 3}, "3.00 dollars", "6.00 dollars"),
    ],
)
def test_each_limit_ends_the_search_when_it_is_reached(
    limits: dict[str, float], half: str, words: str, tmp_path: Path, clock: Clock
) -> None:
    some = budget(tmp_path, **limits)
    clock.now += 3600
    some.note("a", 200)
    some.note("b", 200)
    some.note("a", 300)  # of a trial, the latest count
    assert not spent(tmp_path)
    assert some.left() == f"budget left: {half}"
    clock.now += 3600
    some.note("b", 700)
    assert spent(tmp_path)
    assert some.reached() == words


def test_a_resumed_search_goes_on_counting_and_may_be_given_more(tmp_path: Path, clock: Clock) -> None:
    first = budget(tmp_path, hours=1, tokens=1000)
    clock.now += 1800
    first.note("a", 1000)
    assert spent(tmp_path)
    clock.now += 1e6  # nobody was at work
    again = budget(tmp_path, hours=1, tokens=1000)
    assert spent(tmp_path)
    assert (again.hours, again.tokens) == (0.5, 1000)
    more = budget(tmp_path, hours=1, tokens=2000)
    assert not spent(tmp_path)
    assert more.left() == "budget left: 30 min 00 s, 1,000 tokens"


def test_dollars_need_a_price(tiny: dict[str, Any]) -> None:
    tiny["search"]["budget"] = {"dollars": 5}
    with pytest.raises(UserError, match="dollars needs dollars_per_hour"):
        parse_config(tiny)
