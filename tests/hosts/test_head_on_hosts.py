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
from hosts import LONG_S, Hosts, hosts, wait
from small_searches import at_work, evaluations

pytestmark = [pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(2400)]

TRIALS = 3
STEPS, EVAL_EVERY = 60, 10
HELD = 30  # the last step before trials wait until they may pass
AHEAD_S = 36_000  # of the host whose clock is wrong


@dataclass
class Ended:
    """The search.

    Attributes:
        folder: of the run.
        lost: the trial whose host was killed.
        before: evaluations of each trial at work when a host was killed, or the head.
        late: whether the host that came late had a worker, and the lost trial ended before the head was killed.
        finished: when outcomes were written that were there when the head was killed.
        said: what the search printed before and after.
        status: of the process that went on with it.
        ahead: seconds by which the clock of one host was ahead.
    """

    folder: Path
    lost: str = ""
    before: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    late: bool = False
    finished: dict[Path, int] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    status: int = -1
    ahead: float = 0.0


@pytest.fixture(scope="module")
def ended(make_tiny: Callable[[], dict[str, Any]]) -> Iterator[Ended]:
    tree = make_tiny()
    tree["train"].update(steps=STEPS, eval_every=EVAL_EVERY)
    tree["search"] = {"trials": TRIALS, "stop": {"below_fft": False, "plateau": None}}
    with hosts("north", "east", "west", "south", hold_after=HELD) as net:
        (net.folder / "tiny.yaml").write_text(yaml.safe_dump(tree))
        ended = Ended(net.folder / "run")
        try:
            until_the_head_goes(net, ended)
            with_a_new_head(net, ended)
            yield ended
        finally:
            for path in net.folder.glob("said-*"):
                print(path.read_text())


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
        return True

    def two_held() -> bool:
        return len(at_work(ended.folder).keys() & net.gate.waiting()) == 2

    def note() -> None:
        ended.before |= {trial: evaluations(ended.folder, trial) for trial in at_work(ended.folder)}

    trials = ended.folder / "work" / "trials"
    wait(lambda: goes_on() and two_held(), "two trials side by side")
    note()
    net["east"].kill()
    wait(lambda: goes_on() and list(trials.glob("*/restarts.jsonl")), "a trial that was lost")
    [ended.lost] = [path.parent.name for path in trials.glob("*/restarts.jsonl")]
    net["south"].start_ray(1)
    wait(lambda: goes_on() and net["south"].works(), "work on the host that came late")
    net.gate.let_pass(ended.lost)
    wait(lambda: goes_on() and (trials / ended.lost / "outcome.json").exists(), "the end of a trial")
    ended.late = True
    wait(lambda: goes_on() and two_held(), "two trials side by side again")
    note()
    for name in ("north", "west", "south"):
        net[name].kill()
    job.wait(LONG_S)
    ended.finished = {path: path.stat().st_mtime_ns for path in trials.glob("*/outcome.json")}
    ended.said.append((net.folder / "said-1").read_text())


def with_a_new_head(net: Hosts, ended: Ended) -> None:
    net.gate.let_pass()
    net["north"].start_ray(0)
    net["south"].start_ray(1)
    net["west"].start_ray(1, **net["west"].wrong_clock(AHEAD_S))
    job = net.submit(["python", "-m", "mft_ray.tune", "--resume", "run"], "said-2")
    wait(lambda: job.poll() is not None, "the end of the search")
    ended.status = job.returncode
    ended.said.append((net.folder / "said-2").read_text())


def test_a_search_goes_on_with_a_new_head_to_its_verdict(ended: Ended) -> None:
    assert ended.status == 0, ended.said[1]
    rows = json.loads((ended.folder / "leaderboard.json").read_text())["trials"]
    assert [(row["status"], row["score"] is not None) for row in rows] == [("completed", True)] * TRIALS
    assert (ended.folder / "verdict.json").exists()
    assert "Traceback" not in ended.said[1]


def test_no_trial_that_had_ended_is_lost_or_repeated(ended: Ended) -> None:
    assert [path.parent.name for path in ended.finished] == [ended.lost]
    assert {path: path.stat().st_mtime_ns for path in ended.finished} == ended.finished


def test_trials_at_work_go_on_from_their_last_evaluation(ended: Ended) -> None:
    assert len(ended.before) == TRIALS
    for trial, before in ended.before.items():
        now = evaluations(ended.folder, trial)
        assert now[: len(before)] == before
        assert [step for step, _ in now] == list(range(0, STEPS + 1, EVAL_EVERY))


def test_a_trial_whose_host_is_killed_goes_on_where_one_comes_late(ended: Ended) -> None:
    assert ended.late
    restarts = [line for line in ended.said[0].splitlines() if "it is started anew and goes on from its last" in line]
    assert len(restarts) == 1, restarts


def test_clocks_that_differ_make_nothing_of_it(ended: Ended) -> None:
    assert ended.ahead > AHEAD_S / 2
    said = "\n".join(ended.said)
    assert "no sign of life" not in said
    rows = json.loads((ended.folder / "leaderboard.json").read_text())["trials"]
    assert all(0 < row["seconds"] < AHEAD_S for row in rows)
