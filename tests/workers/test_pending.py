"""What is said while trials wait for room."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from mft_ray.workers import pending as waiting
from mft_ray.workers.pending import Waiting


@pytest.fixture
def too_big(ray_cluster: None) -> Iterator[PlacementGroup]:
    """A worker group for which the tests' Ray has no room."""
    group = placement_group([{"CPU": 2}, {"CPU": 2}])
    yield group
    remove_placement_group(group)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call looks."""
    monkeypatch.setattr(waiting, "_LOOK_S", 0.0)


def test_who_waits_is_said_once_and_with_what_there_is(too_big: PlacementGroup) -> None:
    said: list[str] = []
    wait = Waiting(said.append, patience=0.0)
    wait()
    wait()
    assert len(said) == 1
    assert re.fullmatch(
        r"a trial has waited \d+ s for 2 x \(2 CPU\); the cluster has 1 node\(s\) and (\d CPU|nothing) free", said[0]
    )


def test_who_has_not_waited_long_is_not_talked_about(too_big: PlacementGroup) -> None:
    said: list[str] = []
    wait = Waiting(said.append, patience=600.0)
    wait()
    wait()
    assert said == []


def test_who_has_a_place_is_not_talked_about(ray_cluster: None) -> None:
    group = placement_group([{"CPU": 1}])
    ray.get(group.ready(), timeout=240)
    said: list[str] = []
    Waiting(said.append, patience=0.0)()
    remove_placement_group(group)
    assert said == []
