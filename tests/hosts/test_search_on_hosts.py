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
from hosts import LONG_S, Hosts, hosts, wait
from small_searches import evaluations

pytestmark = [pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(2400)]

TRIALS = 3
STEPS, EVAL_EVERY = 60, 10
HELD = 30  # the last step before trials wait until they may pass
PLACES = ("east", "west", "south")  # hosts with a place for one worker
AWAY_S = 20
# How long it may take until a host is missed that says nothing any more: Ray asks it five times, waits each time up to
# 10 s, and then a trial's workers have to end. Of that a slow machine does only the last more slowly.
MISSED_S = 240


@dataclass
class Watched:
    """A trial to which something happened.

    Attributes:
        places: hosts of its workers before.
        before: its evaluations until then.
        after: all its evaluations, in the end.
        noticed: seconds until its workers were started anew; None if they were not.
        reasons: why they were.
    """

    places: list[str]
    before: list[tuple[int, float]]
    after: list[tuple[int, float]] = field(default_factory=list)
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
        """Wait until another trial is held between two evaluations; return its id."""

        def found() -> list[str]:
            return sorted(self.net.gate.waiting() - set(known))

        wait(lambda: self.goes_on() and found(), "a trial at work")
        return found()[0]

    def places(self) -> list[str]:
        return [name for name in PLACES if self.net[name].works()]

    def watch(self, trial: str, happens: Callable[[str], None], leaves: bool) -> Watched:
        """Have something happen to a host of a trial that is held, let it pass, and wait for its end.

        Args:
            trial: its id.
            happens: told the name of the host.
            leaves: whether it has to be started anew before it may pass.
        """
        out = self.folder / "work" / "trials" / trial
        seen = Watched(self.places(), evaluations(self.folder, trial))
        began = time.monotonic()
        happens(seen.places[0])
        if leaves:
            wait(lambda: self.goes_on() and (out / "restarts.jsonl").exists(), f"a new start of {trial}")
            seen.noticed = time.monotonic() - began
        self.net.gate.let_pass(trial)
        wait(lambda: self.goes_on() and (out / "outcome.json").exists(), f"the end of {trial}")
        restarts = (out / "restarts.jsonl").read_text() if (out / "restarts.jsonl").exists() else ""
        seen.reasons = [json.loads(line)["restart"] for line in restarts.splitlines()]
        seen.after = evaluations(self.folder, trial)
        print(f"{trial}: {seen}")
        return seen


@pytest.fixture(scope="module")
def ended(make_tiny: Callable[[], dict[str, Any]]) -> Iterator[Ended]:
    tree = make_tiny()
    tree["train"].update(steps=STEPS, eval_every=EVAL_EVERY)
    tree["scaling"] = {"workers": 2, "max_failures": 1}
    tree["search"] = {"trials": TRIALS, "stop": {"below_fft": False, "plateau": None}}
    with hosts("north", *PLACES, hold_after=HELD) as net:
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
        wait(lambda: search.goes_on() and not net[name].has_ray(), "the end of its Ray")
        net[name].kill()
        net[name].start_ray(1)

    known: list[str] = []
    for what, leaves, happens in (
        ("ended", True, restarted),
        ("away", False, away),
        ("gone", True, lambda name: net[name].cut_off()),
    ):
        known.append(search.next_trial(known))
        ended.trials[what] = search.watch(known[-1], happens, leaves)
    try:
        ended.status = search.job.wait(LONG_S)
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
    assert int(match[1]) == HELD + 1
    assert f"{reason}; it is started anew and goes on from its last checkpoint" in ended.said


def test_no_trial_repeats_an_evaluation(ended: Ended) -> None:
    for trial in ended.trials.values():
        assert [step for step, _ in trial.before] == list(range(0, HELD + 1, EVAL_EVERY))
        assert trial.after[: len(trial.before)] == trial.before
        assert [step for step, _ in trial.after] == list(range(0, STEPS + 1, EVAL_EVERY))


def test_a_host_that_is_cut_off_for_a_while_costs_no_more_than_a_restart(ended: Ended) -> None:
    assert len(ended.trials["away"].reasons) <= 1


def test_a_trial_goes_on_elsewhere_where_a_host_is_cut_off_for_ever(ended: Ended) -> None:
    trial = ended.trials["gone"]
    assert len(trial.reasons) == 1
    assert trial.noticed is not None
    assert trial.noticed < MISSED_S
    assert "the cluster has shrunk from 4 to 3 node(s)" in ended.said
