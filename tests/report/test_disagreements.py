"""Validation examples on which trials disagree."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mft_ray.config import DataConfig
from mft_ray.data import arithmetic
from mft_ray.data.store import open_split, prepare
from mft_ray.evaluation.example_scores import ExampleScores
from mft_ray.models.names import SCORES
from mft_ray.report.disagreements import SHOWN, disagreement, furthest_apart
from mft_ray.runs.folder import RunFolder


def keep(folder: RunFolder, trial: str, *values: float, metric: str = "exact_match") -> None:
    folder.trial(trial).mkdir(parents=True, exist_ok=True)
    ExampleScores.of(metric, values).save(folder.trial(trial) / SCORES)


def rows(*scores: list[float]) -> NDArray[np.float32]:
    return np.asarray(scores, dtype=np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.scores.mkdir(parents=True)
    return folder


def test_what_one_answers_right_and_another_not_is_counted_and_shown_with_prompt_and_answer(folder: RunFolder) -> None:
    config = DataConfig(task="arithmetic", n_train=10, n_validation=6, n_test=6)
    prepare(config, arithmetic.tokenizer(), folder.data, log=lambda line: None)
    keep(folder, "a", 1, 1, 0, 0, 1, 1)
    keep(folder, "b", 1, 0, 1, 0, 0, 1)
    folder.scores_of("fft", "validation", "exact_match").write_text(json.dumps([1.0, 1.0, 0.0, 0.0, 0.0, 1.0]))
    found = disagreement(folder.root, ["a", "b"])
    assert (found.metric, found.n, found.differing, found.alone) == ("exact_match", 6, 3, (2, 1))
    assert found.right_or_wrong
    assert (found.without, found.unread) == ({}, "")
    # In turns: a alone, b alone, a alone.
    assert [(each.index, each.scores, each.fft) for each in found.examples] == [
        (1, (1.0, 0.0), 1.0),
        (2, (0.0, 1.0), 0.0),
        (4, (1.0, 0.0), 0.0),
    ]
    split = open_split(folder.data, "validation")
    for each in found.examples:
        assert each.answer == split[each.index]["answer"]
        assert each.prompt == split[each.index]["id"]


def test_scores_of_other_kinds_are_shown_where_they_lie_furthest_apart(folder: RunFolder) -> None:
    keep(folder, "a", -0.1, -0.5, -3.0, -1.0, metric="answer_logprob")
    keep(folder, "b", -0.1, -0.75, -0.5, -1.25, metric="answer_logprob")
    found = disagreement(folder.root, ["a", "b"])
    assert not found.right_or_wrong
    assert (found.differing, found.alone) == (3, (2, 1))
    assert [each.index for each in found.examples] == [2, 1, 3]
    assert [each.fft for each in found.examples] == [None] * 3
    # Without the data there are scores at least, and it is said.
    assert "no prepared data" in found.unread


def test_only_so_many_are_shown_and_each_way_of_disagreeing_is_among_them() -> None:
    one = [1.0] * 100 + [0.0] * 3
    other = [0.0] * 100 + [1.0] * 3
    shown = furthest_apart(rows(one, other))
    assert len(shown) == SHOWN
    assert shown[:6] == [0, 100, 1, 101, 2, 102]
    assert furthest_apart(rows([1.0, 0.0], [1.0, 0.0])) == []
    three = furthest_apart(rows([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 1.0]))
    assert sorted(three) == [0, 1, 2]


def test_what_cannot_be_compared_is_named_with_its_reason(folder: RunFolder) -> None:
    keep(folder, "a", 1, 0)
    keep(folder, "b", 0, 0)
    keep(folder, "c", -0.5, -0.25, metric="answer_logprob")
    keep(folder, "d", 1, 0)
    (folder.trial("d") / SCORES).write_bytes(b"half")
    found = disagreement(folder.root, ["a", "b", "c", "d", "e"])
    assert found.trials == ("a", "b")
    assert "another metric (answer_logprob)" in found.without["c"]
    assert "does not hold scores" in found.without["d"]
    assert "search.keep" in found.without["e"]
    alone = disagreement(folder.root, ["a", "e"])
    assert (alone.trials, alone.examples) == (("a",), ())


def test_a_long_prompt_is_cut_and_says_by_how_much(folder: RunFolder) -> None:
    from mft_ray.report.disagreements import _short

    assert _short("a" * 2000) == "a" * 2000
    assert _short("a" * 3500).endswith("… (1,500 more characters)")
