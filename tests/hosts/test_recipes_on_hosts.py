"""The paper's recipes over two hosts: as they are, with ZeRO-3, but for a tiny model and as few examples."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import recipes_on_hosts
from hosts import LONG_S, Hosts, hosts
from on_workers import NoteHosts
from tiny_recipes import RECIPES, check

pytestmark = [pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def trained() -> Iterator[Hosts]:
    with hosts("north", "east", "west") as net:
        for name, cpus in (("north", 0), ("east", 1), ("west", 1)):
            net[name].start_ray(cpus)
        program = [sys.executable, recipes_on_hosts.__file__, str(net.folder)]
        status = net["north"].run(program, "driver.log", 2 * LONG_S)
        assert status == 0, (net.folder / "driver.log").read_text()
        yield net


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_goes_the_whole_way_over_two_hosts(trained: Hosts, name: str) -> None:
    check(name, Path(trained.folder / name))
    for method in ("fft", "mft"):
        noted = NoteHosts(str(trained.folder / f"{name}.{method}.hosts"))
        assert sorted(noted.hosts(2)) == ["east", "west"]
