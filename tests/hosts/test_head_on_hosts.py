"""A search on hosts of which one loses its power, one comes late and one's clock is wrong; then the head goes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from hosts import Hosts, hosts, wait
from small_searches import at_work, in_the_middle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]

TRIALS = 4
STEPS, EVAL_EVERY = 1200, 100
AHEAD_S = 600  # of the host whose clock is wrong


@dataclass
class Ended:
    """The search.

    Attributes:
        folder: of the run.
        lost: the step of each trial when one of two hosts was killed, and the least that it ever told afterwards.
        late: whether the host that came late had a worker.
        finished: when outcomes were written that were there when the head was killed.
        left: the step of each trial that was at work then, and the least that it told when the search went on.
        said: what the search printed before and after.
        status: of the process that went on with it.
        ahead: seconds by which the clock of one host was ahead.
    """

    folder: Path
    lost: dict[str, list[int]] = field(default_factory=dict)
    late: bool = False
    finished: dict[Path, int] = field(default_factory=dict)
    left: dict[str, list[int]] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    status: int = -1
    ahead: float = 0.0


@pytest.fixture(scope="module")
def ended(make_tiny: Callable[[], dict[str, Any]]) -> Iterator[Ended]:
    tree = make_tiny()
    tree["train"].update(steps=STEPS, eval_every=EVAL_EVERY)
    tree["search"] = {"trials": TRIALS, "stop": {"below_fft": False, "plateau": None}}
    with hosts("north", "east", "west", "south") as net:
        (net.folder / "tiny.yaml").write_text(yaml.safe_dump(tree))
        ended = Ended(net.folder / "run")
        try:
            until_the_head_goes(net, ended)
            with_a_new_head(net, ended)
            yield ended
        finally:
            for path in net.folder.glob("said-*"):
                print(path.read_text())


def follow(ended: Ended, steps: dict[str, list[int]]) -> None:
    for trial, at in at_work(ended.folder).items():
        if trial in steps:
            steps[trial][1] = min(steps[trial][1], at)


def until_the_head_goes(net: Hosts, ended: Ended) -> None:
    net["north"].start_ray(0)
    net["east"].start_ray(1)
    net["west"].start_ray(1, **net["west"].wrong_clock(AHEAD_S))
    ask = [sys.executable, "-c", "import time; print(time.time())"]
    net["west"].run(ask, "clock", **net["west"].wrong_clock(AHEAD_S))
    ended.ahead = float((net.folder / "clock").read_text()) - time.time()
    job = net.submit(["python", "-m", "mft_ray.tune", "--config", "tiny.yaml", "--set", "run.dir=run"], "said-1")

    def goes_on() -> bool:
        assert job.poll() is None, (net.folder / "said-1").read_text()
        follow(ended, ended.lost)
        return True

    def two() -> bool:
        steps = at_work(ended.folder).values()
        return len(steps) == 2 and min(steps) >= 2 * EVAL_EVERY

    wait(lambda: goes_on() and two(), "two trials side by side", 180)
    net["east"].kill()
    ended.lost = {trial: [at, at] for trial, at in at_work(ended.folder).items()}
    net["south"].start_ray(1)
    wait(lambda: goes_on() and net["south"].works(), "work on the host that came late", 120)
    ended.late = True
    wait(lambda: goes_on() and in_the_middle(ended.folder), "the end of a trial", 120)
    for name in ("north", "west", "south"):
        net[name].kill()
    job.wait(60)
    outcomes = (ended.folder / "work" / "trials").glob("*/outcome.json")
    ended.finished = {path: path.stat().st_mtime_ns for path in outcomes}
    ended.left = {trial: [at, at] for trial, at in at_work(ended.folder).items()}
    ended.said.append((net.folder / "said-1").read_text())


def with_a_new_head(net: Hosts, ended: Ended) -> None:
    net["north"].start_ray(0)
    net["south"].start_ray(1)
    net["west"].start_ray(1, **net["west"].wrong_clock(AHEAD_S))
    job = net.submit(["python", "-m", "mft_ray.tune", "--resume", "run"], "said-2")

    def over() -> bool:
        follow(ended, ended.left)
        return job.poll() is not None

    wait(over, "the end of the search", 240)
    ended.status = job.returncode
    ended.said.append((net.folder / "said-2").read_text())


def test_a_search_goes_on_with_a_new_head_to_its_verdict(ended: Ended) -> None:
    assert ended.status == 0, ended.said[1]
    rows = json.loads((ended.folder / "leaderboard.json").read_text())["trials"]
    assert [(row["status"], row["score"] is not None) for row in rows] == [("completed", True)] * TRIALS
    assert (ended.folder / "verdict.json").exists()
    assert "Traceback" not in ended.said[1]


def test_no_trial_that_had_ended_is_lost_or_repeated(ended: Ended) -> None:
    assert ended.finished
    assert {path: path.stat().st_mtime_ns for path in ended.finished} == ended.finished


def test_trials_at_work_go_on_from_their_last_evaluation(ended: Ended) -> None:
    assert ended.left
    for at, least in ended.left.values():
        assert least >= at - EVAL_EVERY


def test_a_trial_whose_host_is_killed_goes_on_where_one_comes_late(ended: Ended) -> None:
    assert ended.late
    assert len(ended.lost) == 2
    for at, least in ended.lost.values():
        assert least >= at - EVAL_EVERY > 0
    restarts = [line for line in ended.said[0].splitlines() if "it is started anew and goes on from its last" in line]
    assert len(restarts) == 1, restarts


def test_clocks_that_differ_make_nothing_of_it(ended: Ended) -> None:
    assert ended.ahead > AHEAD_S / 2
    said = "\n".join(ended.said)
    assert "no sign of life" not in said
    rows = json.loads((ended.folder / "leaderboard.json").read_text())["trials"]
    assert all(0 < row["seconds"] < AHEAD_S for row in rows)
