"""A tracker beside a search: what fails there is said once, tried again, counted, and in nobody's way."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tracking_fixtures import finished

from mft_ray.config import parse_config
from mft_ray.runs.folder import RunFolder
from mft_ray.tracking import follow
from mft_ray.tracking.follow import Follower, followed, without_secrets
from mft_ray.tracking.snapshot import Snapshot, SnapshotReader


class Flaky:
    """A tracker whose first attempts fail."""

    name = "Flaky"

    def __init__(self, failing: int, waits: float = 0.0) -> None:
        self.failing, self.waits, self.attempts = failing, waits, 0
        self.seen: list[bool] = []
        self.closed = False

    def sync(self, snapshot: Snapshot, final: bool) -> None:
        time.sleep(self.waits)
        self.attempts += 1
        if self.attempts <= self.failing:
            raise ConnectionError("the server of SECRET-VALUE is away")
        self.seen.append(final)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def follower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Flaky], Follower]:
    monkeypatch.setattr(follow, "_EVERY_S", 0.02)
    monkeypatch.setattr(follow, "_PAUSE_S", (0.02, 0.02))
    monkeypatch.setattr(follow, "_LAST_S", 1.0)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "SECRET-VALUE")
    reader = SnapshotReader(finished(tmp_path), "mft")
    return lambda tracker: Follower(tracker, reader, "--resume RUN")


def while_true(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_failure_is_said_once_and_counted(
    follower: Callable[[Flaky], Follower], capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = Flaky(failing=3)
    its = follower(tracker)
    its.start()
    while_true(lambda: not tracker.seen)
    its.stop()
    said = capsys.readouterr().out
    assert said.count("Flaky fails: ConnectionError: the server of *** is away. The search goes on") == 1
    assert said.count("Flaky failed 3 times; everything is there now") == 1
    assert tracker.seen[-1] is True
    assert tracker.closed


def test_what_is_missing_at_the_end_is_said(
    follower: Callable[[Flaky], Follower], capsys: pytest.CaptureFixture[str]
) -> None:
    its = follower(Flaky(failing=10**6))
    its.start()
    its.stop()
    said = capsys.readouterr().out
    assert "something is missing there (ConnectionError: the server of *** is away): --resume RUN sends it" in said
    assert "SECRET" not in said


def test_one_that_hangs_is_waited_for_no_longer_than_a_while(
    follower: Callable[[Flaky], Follower], capsys: pytest.CaptureFixture[str]
) -> None:
    its = follower(Flaky(failing=0, waits=4))
    its.start()
    began = time.monotonic()
    its.stop()
    assert time.monotonic() - began < 3
    assert "Flaky has not taken everything in 1 s: --resume RUN sends what is missing" in capsys.readouterr().out


def test_one_that_works_says_nothing(follower: Callable[[Flaky], Follower], capsys: pytest.CaptureFixture[str]) -> None:
    its = follower(Flaky(failing=0))
    its.start()
    its.stop()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("wanted", [True, False])
def test_events_are_written_unless_told_not_to(tmp_path: Path, wanted: bool) -> None:
    folder = finished(tmp_path)
    config = parse_config({"model": {"path": "mine"}, "tracking": {"tensorboard": wanted}})
    with followed(config, folder):
        pass
    assert folder.tensorboard.exists() is wanted
    assert not folder.tracking.exists()


def test_an_interrupted_search_is_shown_as_far_as_it_is(tmp_path: Path) -> None:
    folder: RunFolder = finished(tmp_path)
    config = parse_config({"model": {"path": "mine"}})
    with pytest.raises(KeyboardInterrupt), followed(config, folder):
        raise KeyboardInterrupt
    assert (folder.tensorboard / "aaaa1111").is_dir()


def test_secrets_are_blanked_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    assert without_secrets(ValueError("bad key 0123456789abcdef\nhere")) == "ValueError: bad key *** here"
    assert len(without_secrets(ValueError("x" * 10_000))) < 400
