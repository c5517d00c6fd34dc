"""Worker groups on several hosts: the same masks as on one, and a host that says that it goes away."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import groups_on_hosts
import pytest
from ground import comparable
from groups_on_hosts import LONG, STAGES
from hosts import Hosts, hosts, wait
from on_workers import NoteHosts

from mft_ray.masking import load_mask
from mft_ray.training.job import Outcome

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NOTICE_S = 30


@dataclass(frozen=True)
class Ended:
    """What the driver left.

    Attributes:
        net: the hosts.
        restarts: what the job was told that had to leave a host.
        left_after: seconds from the notice until there was a checkpoint.
        alive_for: seconds from the notice until the host's Ray had ended by itself.
    """

    net: Hosts
    restarts: list[str]
    left_after: float
    alive_for: float

    def outcome(self, job: str) -> Outcome:
        return Outcome.load(self.net.folder / job / "outcome.json")

    def hosts(self, job: str, step: int) -> list[str]:
        return NoteHosts(str(self.net.folder / f"{job}.hosts")).hosts(step)


@pytest.fixture(scope="module")
def ended() -> Iterator[Ended]:
    with hosts("north", "east", "west", "south") as net:
        for name, cpus in (("north", 0), ("east", 1), ("west", 1)):
            net[name].start_ray(cpus)
        program = str(Path(groups_on_hosts.__file__))
        driver = net["north"].start([sys.executable, program, str(net.folder)], "driver.log")

        def going() -> bool:
            assert driver.poll() is None, (net.folder / "driver.log").read_text()
            return True

        def seen(path: str) -> None:
            wait(lambda: going() and (net.folder / path).exists(), path, 120)

        seen("two")
        net["south"].start_ray(2)
        (net.folder / "joined").touch()
        seen("left.hosts")  # the first evaluation after the start
        net["south"].announce_end(NOTICE_S)
        told = time.monotonic()
        wait(lambda: going() and between_evaluations(net.folder / "left"), "a checkpoint", NOTICE_S)
        left_after = time.monotonic() - told
        wait(lambda: not net["south"].has_ray(), "the end of its Ray", NOTICE_S)
        alive_for = time.monotonic() - told
        assert driver.wait(120) == 0, (net.folder / "driver.log").read_text()
        print(f"after the notice: a checkpoint in {left_after:.1f} s, the host's Ray had ended in {alive_for:.1f} s")
        yield Ended(net, json.loads((net.folder / "restarts.json").read_text()), left_after, alive_for)


def between_evaluations(job: Path) -> bool:
    """Whether there is a checkpoint of a step at which none was due."""
    return any(int(path.name.split("-")[1]) % LONG.eval_every for path in job.glob("checkpoints/step-*"))


@pytest.mark.parametrize("stage", STAGES)
def test_a_mask_learned_on_two_hosts_is_the_same_as_on_one(ended: Ended, stage: int) -> None:
    two, one = f"two-z{stage}", f"one-z{stage}"
    assert (sorted(ended.hosts(two, 5)), ended.hosts(one, 5)) == (["east", "west"], ["south", "south"])
    assert comparable(ended.outcome(two)) == comparable(ended.outcome(one))
    masks = [load_mask(ended.net.folder / job / "mask.safetensors").masks for job in (two, one)]
    assert masks[0].keys() == masks[1].keys()
    assert all(masks[0][name].equal(masks[1][name]) for name in masks[0])


def test_workers_leave_a_host_within_its_notice(ended: Ended) -> None:
    assert ended.left_after < NOTICE_S
    assert ended.alive_for < NOTICE_S  # Ray ends by itself where nothing is left to do
    assert (ended.hosts("left", LONG.eval_every), sorted(ended.hosts("left", LONG.steps))) == (
        ["south", "south"],
        ["east", "west"],
    )
    [reason] = ended.restarts
    address = ended.net["south"].address
    assert reason.startswith(f"{address} is going away, as was announced; its workers left at step ")


def test_no_step_is_lost_by_that_and_no_failure_counted(ended: Ended) -> None:
    """The jobs may not fail once, and a step that was repeated or left out would change what comes after it."""
    assert comparable(ended.outcome("left")) == comparable(ended.outcome("undisturbed"))
