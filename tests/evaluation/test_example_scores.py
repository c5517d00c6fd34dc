"""Scores of single examples, as a trial keeps them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mft_ray.evaluation.example_scores import ExampleScores
from mft_ray.models.artifacts import drop_artifact
from mft_ray.models.names import MASK, SCORES
from mft_ray.utils.files import Damaged


def test_they_come_back_as_they_went_in_four_bytes_each(tmp_path: Path) -> None:
    path = tmp_path / SCORES
    ExampleScores.of("answer_logprob", [-0.25] * 5000 + [-1.5]).save(path)
    found = ExampleScores.load(path)
    assert found.metric == "answer_logprob"
    assert found.values.dtype == np.float32
    assert found.values.tolist() == [-0.25] * 5000 + [-1.5]
    assert path.stat().st_size < 4 * 5001 + 300


def test_what_is_no_such_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / SCORES
    with pytest.raises(FileNotFoundError):
        ExampleScores.load(path)
    ExampleScores.of("exact_match", [0.0, 1.0]).save(path)
    whole = path.read_bytes()
    for content in (b"", whole[:-3], b"{}"):
        path.write_bytes(content)
        with pytest.raises(Damaged, match="does not hold scores"):
            ExampleScores.load(path)


def test_they_go_with_the_mask_that_they_are_of(tmp_path: Path) -> None:
    ExampleScores.of("exact_match", [0.0, 1.0]).save(tmp_path / SCORES)
    (tmp_path / MASK).write_bytes(b"")
    (tmp_path / "outcome.json").write_text("{}")
    drop_artifact(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["outcome.json"]
