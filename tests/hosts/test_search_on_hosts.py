"""A search whose trials have workers on two hosts each, and to whose hosts bad things happen, one after another."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from hosts import Hosts, hosts, wait
from small_searches import at_work

pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]

TRIALS = 3
STEPS, EVAL_EVERY = 1200, 100
PLACES = ("east", "west", "south")  # hosts with a place for one worker
AWAY_S = 20
# How long it may take until a host is missed that says nothing any more: Ray asks it five times, waits each time up to
# 10 s, and then a trial's workers have to end.
MISSED_S = 120


@dataclass
class Watched:
    """A trial to which something happened.

    Attributes:
        places: hosts of its workers before.
        at: its step then.
        least: the least step that it ever told afterwards.
        noticed: seconds until its workers were started anew; None if they were not.
        reasons: why they were.
    """

    places: list[str]
    at: int
    least: int
    noticed: float | None = None
    reasons: list[str] = field(default_factory=list)


@dataclass
class Ended:
    """The search.

    Attributes:
        folder: of the run.
        status: of the process that submitted it.
        said: what it printed.
        trials: by what happened to it.
    """

    folder: Path
    status: int = -1
    said: str = ""
    trials: dict[str, Watched] = field(default_factory=dict)


class Search:
    """A search that was submitted, as it is seen from the desk."""

    def __init__(self, net: Hosts, tree: dict[str, Any]) -> None:
        self.net, self.folder = net, net.folder / "run"
        (net.folder / "tiny.yaml").write_text(yaml.safe_dump(tree))
        self.job = net.submit(["python", "-m", "mft_ray.tune", "--config", "tiny.yaml", "--set", "run.dir=run"], "said")

    def goes_on(self) -> bool:
        assert self.job.poll() is None, (self.net.folder / "said").read_text()
        return True

    def next_trial(self, known: list[str]) -> str:
        """Wait until another trial has left its second checkpoint; return its id."""

        def found() -> list[str]:
            return [trial for trial, at in at_work(self.folder).items() if trial not in known and at >= 2 * EVAL_EVERY]

        wait(lambda: self.goes_on() and found(), "a trial at work", 240)
        return found()[0]

    def places(self) -> list[str]:
        return [name for name in PLACES if self.net[name].works()]

    def watch(self, trial: str, happens: Callable[[str], None]) -> Watched:
        """Have something happen to a host of a trial, and look at the trial until it has ended."""
        out = self.folder / "work" / "trials" / trial
        seen = Watched(self.places(), at_work(self.folder)[trial], STEPS)
        happens(seen.places[0])
        began = time.monotonic()

        def over() -> bool:
            steps = at_work(self.folder)
            seen.least = min(seen.least, steps.get(trial, STEPS))
            if seen.noticed is None and (out / "restarts.jsonl").exists():
                seen.noticed = time.monotonic() - began
            return (out / "outcome.json").exists()

        wait(lambda: self.goes_on() and over(), f"the end of {trial}", 300)
        restarts = (out / "restarts.jsonl").read_text() if (out / "restarts.jsonl").exists() else ""
        seen.reasons = [json.loads(line)["restart"] for line in restarts.splitlines()]
        print(f"{trial}: {seen}")
        return seen


@pytest.fixture(scope="module")
def ended(make_tiny: Callable[[], dict[str, Any]]) -> Iterator[Ended]:
    tree = make_tiny()
    tree["train"].update(steps=STEPS, eval_every=EVAL_EVERY)
    tree["scaling"] = {"workers": 2, "max_failures": 1}
    tree["search"] = {"trials": TRIALS, "stop": {"below_fft": False, "plateau": None}}
    with hosts("north", *PLACES) as net:
        net["north"].start_ray(0)
        for name in PLACES:
            net[name].start_ray(1)
        search = Search(net, tree)
        try:
            yield happened(search, net)
        finally:
            print((net.folder / "said").read_text())


def happened(search: Search, net: Hosts) -> Ended:
    ended = Ended(search.folder)

    def away(name: str) -> None:
        net[name].cut_off()
        time.sleep(AWAY_S)
        net[name].plug_in()

    def restarted(name: str) -> None:
        net[name].end_politely()
        wait(lambda: search.goes_on() and not net[name].has_ray(), "the end of its Ray", 60)
        net[name].kill()
        net[name].start_ray(1)

    known: list[str] = []
    for what, happens in (("ended", restarted), ("away", away), ("gone", lambda name: net[name].cut_off())):
        known.append(search.next_trial(known))
        ended.trials[what] = search.watch(known[-1], happens)
    try:
        ended.status = search.job.wait(180)
    except subprocess.TimeoutExpired:
        raise AssertionError((net.folder / "said").read_text()) from None
    ended.said = (net.folder / "said").read_text()
    return ended


def test_all_trials_end_with_scores_and_a_verdict(ended: Ended) -> None:
    assert ended.status == 0
    rows = json.loads((ended.folder / "leaderboard.json").read_text())["trials"]
    assert [(row["status"], row["steps"], row["score"] is not None) for row in rows] == [
        ("completed", STEPS, True)
    ] * TRIALS
    assert (ended.folder / "verdict.json").exists()


def test_each_trial_has_workers_on_two_hosts(ended: Ended) -> None:
    assert [len(trial.places) for trial in ended.trials.values()] == [2] * TRIALS


def test_a_trial_leaves_a_host_that_is_asked_to_end_before_it_ends(ended: Ended) -> None:
    trial = ended.trials["ended"]
    [reason] = trial.reasons
    match = re.fullmatch(r"10\.77\.0\.\d is going away, as was announced; its workers left at step (\d+)", reason)
    assert match, reason
    assert int(match[1]) >= trial.at
    assert f"{reason}; it is started anew and goes on from its last checkpoint" in ended.said


def test_a_host_that_is_cut_off_for_a_while_costs_no_more_than_a_restart(ended: Ended) -> None:
    trial = ended.trials["away"]
    assert len(trial.reasons) <= 1
    assert trial.least >= trial.at - EVAL_EVERY


def test_a_trial_goes_on_elsewhere_where_a_host_is_cut_off_for_ever(ended: Ended) -> None:
    trial = ended.trials["gone"]
    assert len(trial.reasons) == 1
    assert trial.noticed is not None
    assert trial.noticed < MISSED_S
    assert trial.least >= trial.at - EVAL_EVERY
    assert "the cluster has shrunk from 4 to 3 node(s)" in ended.said
