"""What a person asks of a search, as files that the search finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from filelock import FileLock

from mft_ray.errors import UserError
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.live.steering import ask_to_try, asked_to_end, at_work, queue, sign_of_end, stop, take_back


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run folder with three trials, one of which has ended."""
    folder = RunFolder(tmp_path)
    for name in ("abc1", "abd2", "f00d"):
        folder.trial(name).mkdir(parents=True)
        (folder.trial(name) / "config.json").write_text('{"ratio": 0.1}')
    (folder.trial("f00d") / "outcome.json").write_text("{}")
    return folder


def test_what_is_asked_for_first_is_tried_first(folder: RunFolder) -> None:
    for ratio in (0.3, 0.1, 0.2):
        ask_to_try(folder, {"ratio": ratio})
    assert [queued.point for queued in queue(folder)] == [{"ratio": 0.3}, {"ratio": 0.1}, {"ratio": 0.2}]
    take_back(folder, queue(folder)[1].name)
    assert [queued.point["ratio"] for queued in queue(folder)] == [0.3, 0.2]
    with pytest.raises(UserError, match="does not wait"):
        take_back(folder, "../../config")


def test_what_nobody_asked_for_is_set_aside_and_said(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    ask_to_try(folder, {"ratio": 0.3})
    (folder.queue / "0.json").write_text("{half")
    (folder.queue / "1.json").write_text(json.dumps({"ratio": 0.2}))
    assert [queued.point for queued in queue(folder)] == [{"ratio": 0.3}]
    assert capsys.readouterr().out.count("it is not tried") == 2
    assert sorted(path.name for path in folder.queue.glob("*.damaged")) == ["0.damaged", "1.damaged"]


def test_nothing_is_ended_that_does_not_run(folder: RunFolder) -> None:
    with pytest.raises(UserError, match="No search works on"):
        stop(folder.root)
    assert not asked_to_end(folder)


def test_a_search_and_its_trials_can_be_ended(folder: RunFolder) -> None:
    with FileLock(folder.work / "lock"):
        assert at_work(folder)
        assert "trial abc1 ends" in stop(folder.root, "abc")
        assert sign_of_end(folder.trial("abc1")).exists()
        for name, why in (("ab", "More than one"), ("x", "No trial"), ("", "No trial"), ("f00d", "has ended already")):
            with pytest.raises(UserError, match=why):
                stop(folder.root, name)
        assert not asked_to_end(folder)
        stop(folder.root)
        assert asked_to_end(folder)
    assert not at_work(folder)
