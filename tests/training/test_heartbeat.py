"""When a worker has been silent for too long, and what its stack says."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mft_ray.training import heartbeat as signs
from mft_ray.training.heartbeat import FIRST_S, LEAST_S, TIMES, Heartbeat, innermost


class Told(list[tuple[str, float | None]]):
    def __call__(self, doing: str, limit: float | None) -> None:
        self.append((doing, limit))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(signs.time, "monotonic", lambda: now[0])
    return now


def test_a_limit_follows_from_what_the_same_has_taken_before(tmp_path: Path, clock: list[float]) -> None:
    told = Told()
    alive = Heartbeat(told, tmp_path / "stacks" / "0.txt")
    alive.begin(None)
    for doing, seconds in (("trains", 60.0), ("trains", 7.0), ("scores", 1.0), ("trains", 0.0), ("scores", 0.0)):
        alive(doing)
        clock[0] += seconds
    limits = [limit for doing, limit in told if doing == "trains"]
    assert limits == [FIRST_S, TIMES * 60, TIMES * 60]
    assert [limit for doing, limit in told if doing == "scores"] == [FIRST_S, LEAST_S]
    alive.rest()
    assert told[-1] == ("waits for a job", None)
    clock[0] += 10_000  # between two jobs anything may be
    alive.begin(None)
    assert told[-1] == ("begins its job", LEAST_S)
    alive.begin(12.0)
    assert told[-1] == ("begins its job", 12.0)
    alive.rest()


def test_signs_are_told_every_few_seconds(tmp_path: Path, clock: list[float]) -> None:
    told = Told()
    alive = Heartbeat(told, tmp_path / "0.txt")
    alive.begin(None)
    for _ in range(1000):
        alive("trains")
        clock[0] += 0.01
    alive.rest()
    assert len([doing for doing, _ in told if doing == "trains"]) == 2


def serve_py(tmp_path: Path) -> str:
    path = tmp_path / "worker_loop.py"
    path.write_text("def serve(job):\n    job()\n")
    return str(path)


def test_a_silent_worker_leaves_its_stack(tmp_path: Path) -> None:
    alive = Heartbeat(Told(), tmp_path / "0.txt")

    def sleep() -> None:
        alive.begin(0.2)
        time.sleep(0.6)

    scope: dict[str, object] = {}
    exec(compile("def serve(job):\n    job()\n", serve_py(tmp_path), "exec"), scope)
    scope["serve"](sleep)  # type: ignore[operator]
    alive.rest()
    stacks = (tmp_path / "0.txt").read_text()
    place = innermost(stacks)
    assert place is not None
    assert place.startswith("sleep (test_heartbeat.py:")
    assert " < serve (worker_loop.py:2)" in place
    assert innermost(stacks, "another.py") is None
    assert innermost("") is None


def test_a_worker_that_gives_signs_leaves_no_stack(tmp_path: Path) -> None:
    alive = Heartbeat(Told(), tmp_path / "0.txt")
    alive.begin(2.0)
    for number in range(6):
        time.sleep(0.5)
        alive(f"does {number}")
    alive.rest()
    assert (tmp_path / "0.txt").read_text() == ""
