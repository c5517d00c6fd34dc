"""Worker groups on several hosts: the same masks as on one, and on a bad wire; a host that says that it goes away."""

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
from hosts import LONG_S, Hosts, hosts, wait
from on_workers import NoteHosts
from relay import Frames

from mft_ray.masking import load_mask
from mft_ray.training.job import Outcome

pytestmark = [pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(2400)]

NOTICE_S = 120
DELAY_S, LOSS = 0.05, 0.01  # of each frame between two workers, in either direction


@dataclass(frozen=True)
class Ended:
    """What the driver left.

    Attributes:
        net: the hosts.
        restarts: what the job was told that had to leave a host.
        left_after: seconds from the notice until there was a checkpoint.
        alive_for: seconds from the notice until the host's Ray had ended by itself.
        frames: on the wire of one host, while it was bad.
        there_and_back: seconds that a word took on it.
    """

    net: Hosts
    restarts: list[str]
    left_after: float
    alive_for: float
    frames: Frames
    there_and_back: float

    def outcome(self, job: str) -> Outcome:
        return Outcome.load(self.net.folder / job / "outcome.json")

    def hosts(self, job: str, step: int) -> list[str]:
        return NoteHosts(str(self.net.folder / f"{job}.hosts")).hosts(step)


@pytest.fixture(scope="module")
def ended() -> Iterator[Ended]:
    with hosts("north", "east", "west", "south", relayed=("east",)) as net:
        for name, cpus in (("north", 0), ("east", 1), ("west", 1)):
            net[name].start_ray(cpus)
        program = str(Path(groups_on_hosts.__file__))
        driver = net["north"].start([sys.executable, program, str(net.folder)], "driver.log")

        def going() -> bool:
            assert driver.poll() is None, (net.folder / "driver.log").read_text()
            return True

        def seen(path: str) -> None:
            wait(lambda: going() and (net.folder / path).exists(), path)

        seen("two")
        net["east"].worsen(DELAY_S, LOSS)
        there_and_back = how_far(net)
        (net.folder / "worse").touch()
        began = time.monotonic()
        seen("worst")
        frames = net["east"].frames()
        print(f"on a bad wire: {len(STAGES)} jobs in {time.monotonic() - began:.1f} s, {frames}")
        net["east"].worsen(0, 0)
        net["south"].start_ray(2)
        (net.folder / "joined").touch()
        seen("left.hosts")  # the first evaluation after the start
        net["south"].announce_end(NOTICE_S)
        told = time.monotonic()
        wait(lambda: going() and between_evaluations(net.folder / "left"), "a checkpoint", NOTICE_S)
        left_after = time.monotonic() - told
        (net.folder / "noticed").touch()
        wait(lambda: not net["south"].has_ray(), "the end of its Ray", NOTICE_S)
        alive_for = time.monotonic() - told
        assert driver.wait(LONG_S) == 0, (net.folder / "driver.log").read_text()
        print(f"after the notice: a checkpoint in {left_after:.1f} s, the host's Ray had ended in {alive_for:.1f} s")
        restarts = json.loads((net.folder / "restarts.json").read_text())
        yield Ended(net, restarts, left_after, alive_for, frames, there_and_back)


def how_far(net: Hosts) -> float:
    """Return the seconds until a host says that nothing listens at one of its ports, the least of three tries."""
    ask = f"""
import contextlib, socket, time
took = []
for _ in range(3):
    began = time.monotonic()
    with contextlib.suppress(ConnectionRefusedError):
        socket.create_connection(("{net["east"].address}", 9))
    took.append(time.monotonic() - began)
print(min(took))
"""
    assert net["west"].run([sys.executable, "-c", ask], "how-far.log") == 0
    return float((net.folder / "how-far.log").read_text())


def between_evaluations(job: Path) -> bool:
    """Whether there is a checkpoint of a step at which none was due."""
    return any(int(path.name.split("-")[1]) % LONG.eval_every for path in job.glob("checkpoints/step-*"))


@pytest.mark.parametrize("stage", STAGES)
def test_a_mask_learned_on_two_hosts_is_the_same_as_on_one(ended: Ended, stage: int) -> None:
    two, one = f"two-z{stage}", f"one-z{stage}"
    assert (sorted(ended.hosts(two, 5)), ended.hosts(one, 5)) == (["east", "west"], ["south", "south"])
    assert comparable(ended.outcome(two)) == comparable(ended.outcome(one))
    assert same_masks(ended, two, one)


def same_masks(ended: Ended, *jobs: str) -> bool:
    first, second = (load_mask(ended.net.folder / job / "mask.safetensors").masks for job in jobs)
    assert first.keys() == second.keys()
    return all(first[name].equal(second[name]) for name in first)


@pytest.mark.parametrize("stage", STAGES)
def test_a_mask_is_the_same_where_the_way_is_long_and_words_get_lost(ended: Ended, stage: int) -> None:
    good, bad = f"two-z{stage}", f"worse-z{stage}"
    assert sorted(ended.hosts(bad, 5)) == ["east", "west"]
    assert comparable(ended.outcome(bad)) == comparable(ended.outcome(good))
    assert same_masks(ended, good, bad)


def test_the_wire_was_bad_meanwhile(ended: Ended) -> None:
    assert ended.there_and_back >= 2 * DELAY_S
    assert ended.frames.passed > 1000
    assert LOSS / 2 < ended.frames.lost / (ended.frames.passed + ended.frames.lost) < 2 * LOSS


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
