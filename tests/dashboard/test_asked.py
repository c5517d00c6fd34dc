"""A configuration that a person wants to have tried: checked, queued, and handed to Optuna first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution

from mft_ray.cli.main import main
from mft_ray.config import parse_config
from mft_ray.dashboard.asked import try_next
from mft_ray.errors import UserError
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.live.steering import ask_to_try, queue, take
from mft_ray.runs.study.live import LocalStudy
from mft_ray.searches.optuna_search import QUEUED, build_search


@pytest.fixture
def folder(tmp_path: Path, tiny: dict[str, Any]) -> RunFolder:
    """A run folder with an FFT model of two layers and one trial."""
    folder = RunFolder(tmp_path / "run")
    folder.trial("abc1").mkdir(parents=True)
    parse_config(tiny).save(folder.config)
    known = {"score": 0.5, "standard_error": 0.1, "watched": 0.5, "scores": "x"}
    folder.fft_model.write_text(json.dumps({"model": "m", "fingerprint": "f", "depth": 2, **known}))
    point = {"ratio": 0.3, "layers": "0-0", "target": "both", "lr": 1e-3, "init": "magnitude", "schedule": "anneal"}
    (folder.trial("abc1") / "config.json").write_text(json.dumps(point))
    return folder


def test_what_is_left_open_is_as_in_the_other_trial(folder: RunFolder) -> None:
    asked = try_next(folder.root, {"ratio": 0.2}, like="abc")
    assert asked.queued.point["ratio"] == 0.2
    assert (asked.queued.point["layers"], asked.queued.point["init"]) == ("0-0", "magnitude")
    assert "--resume" in asked.when  # nobody works on it
    whole = try_next(folder.root, {"layers": "0-0"}).queued.point
    assert set(whole) == {"ratio", "layers", "target", "lr", "init", "schedule"}
    assert "search.trials=4" in try_next(folder.root, {"ratio": 0.4}).when  # one of two trials is left, three wait


@pytest.mark.parametrize(
    ("point", "like", "said"),
    [
        ({"ratio": 0.99}, None, "lies outside search.space.ratio"),
        ({"layers": "7-9"}, None, "reaches beyond the model's 2 decoder layers"),
        ({"colour": 1}, None, "unknown parameter colour"),
        ({"ratio": "much"}, None, "must be a number"),
        ({"ratio": 0.2}, "zzz", "No trial of"),
    ],
)
def test_what_cannot_be_tried_is_refused(folder: RunFolder, point: dict[str, Any], like: str | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        try_next(folder.root, point, like)
    assert queue(folder) == []


def test_without_an_fft_model_nothing_can_be_checked(folder: RunFolder) -> None:
    folder.fft_model.unlink()
    with pytest.raises(UserError, match="no FFT model yet"):
        try_next(folder.root, {"ratio": 0.2})


def test_by_command(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["enqueue", str(folder.root), "ratio=0.2", "layers=1-1", "lr=1e-4"]) == 0
    assert "ratio 0.200, layers 1-1" in capsys.readouterr().out
    [queued] = queue(folder)
    assert (queued.point["lr"], queued.point["layers"]) == (1e-4, "1-1")
    for given, said in ((["ratio"], "NAME=VALUE"), (["lr=[1"], "cannot be read")):
        assert main(["enqueue", str(folder.root), *given]) == 2
        assert said in capsys.readouterr().err


def test_it_is_what_optuna_proposes_next_and_only_once(folder: RunFolder) -> None:
    space = {"ratio": FloatDistribution(0.0, 0.5)}
    search = build_search(LocalStudy(folder.study), space, [{"ratio": 0.1}], "random", 1, 0)
    search.queue, search.take = lambda: queue(folder), lambda queued: take(folder, queued)
    first = ask_to_try(folder, {"ratio": 0.25})
    ask_to_try(folder, {"ratio": 0.35})
    # What was given at the start was there before.
    assert [search.suggest(name) for name in "abc"] == [{"ratio": 0.1}, {"ratio": 0.25}, {"ratio": 0.35}]
    assert queue(folder) == []
    asked = [trial.user_attrs.get(QUEUED) for trial in search._ot_study.trials]
    assert asked[1] == first.name
    # The process ended before it could be taken out of the queue: it is not tried again.
    (folder.queue / f"{first.name}.json").write_text(
        json.dumps({"name": first.name, "point": first.point, "asked": first.asked})
    )
    assert search.suggest("d") != {"ratio": 0.25}
    assert queue(folder) == []
