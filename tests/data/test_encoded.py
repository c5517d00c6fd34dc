"""Rows of a split are those that were prepared, and none of them is in memory."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mft_ray.data.collate import collate, pack
from mft_ray.data.encoded import EncodedRows, lengths_of
from mft_ray.data.encoding import IGNORED, Row
from mft_ray.data.pieces import ANSWERS, FEATURES
from mft_ray.errors import UserError


def saved(rows: list[Row], folder: Path, shards: int = 1) -> EncodedRows:
    counted = [{**row, ANSWERS: sum(label != IGNORED for label in row["labels"][1:])} for row in rows]
    made = datasets.Dataset.from_list(counted, features=FEATURES)
    made.save_to_disk(str(folder / "train"), num_shards=shards)
    return EncodedRows.open(folder, "train")


def row(number: int, length: int) -> Row:
    tokens = list(range(number, number + length))
    labels = [IGNORED if place % 3 else token for place, token in enumerate(tokens)]
    prompt = tokens[: length // 2]
    return Row(id=str(number), input_ids=tokens, labels=labels, prompt_ids=prompt, answer=f"a{number}", source="s")


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=30), shards=st.integers(1, 4), data=st.data())
def test_rows_are_those_that_were_written(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], shards: int, data: st.DataObject
) -> None:
    written = [row(number, length) for number, length in enumerate(lengths)]
    rows = saved(written, tmp_path_factory.mktemp("data"), min(shards, len(lengths)))
    assert len(rows) == len(written)
    assert rows.lengths() == lengths
    assert rows.lengths("prompt_ids") == [length // 2 for length in lengths]
    assert rows.answer_lengths() == [sum(label != IGNORED for label in each["labels"][1:]) for each in written]
    for place, (mine, theirs) in enumerate(zip(rows, written, strict=True)):
        assert mine["place"] == place
        assert (mine["id"], mine["answer"]) == (theirs["id"], theirs["answer"])
        for name in ("input_ids", "labels", "prompt_ids"):
            assert mine[name].tolist() == theirs[name]  # type: ignore[literal-required]
    start, stop, step = data.draw(st.integers(0, 30)), data.draw(st.integers(0, 30)), data.draw(st.integers(1, 4))
    part = rows[start:stop:step]
    assert [each["id"] for each in part] == [each["id"] for each in written[start:stop:step]]
    assert part.lengths() == lengths[start:stop:step] == lengths_of(list(part), "input_ids")
    assert [each["place"] for each in part] == list(range(len(written)))[start:stop:step]


def test_batches_are_made_of_them_as_of_any(tmp_path: Path) -> None:
    written = [row(3, 4), row(9, 2)]
    rows = saved(written, tmp_path)
    for mine, theirs in ((collate(list(rows), 0), collate(written, 0)), (pack(list(rows)), pack(written))):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert written == [row(3, 4), row(9, 2)]  # nothing was changed on the way


def test_tokens_are_views_of_the_file(tmp_path: Path) -> None:
    rows = saved([row(number, 500) for number in range(2000)], tmp_path)
    taken = rows[1999]["input_ids"]
    assert not taken.flags.owndata
    assert not taken.flags.writeable
    assert taken.dtype == np.int32


def test_no_such_split_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no prepared data"):
        EncodedRows.open(tmp_path, "train")
