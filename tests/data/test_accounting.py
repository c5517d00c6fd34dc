"""Every row is used, part of another's conversation, or left out for a reason."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mft_ray.config import DataConfig
from mft_ray.data import arithmetic
from mft_ray.data.accounting import (
    DUPLICATE,
    IN_TEST,
    NOT_DRAWN,
    SAME_PROMPT,
    SCHEMA,
    Accounting,
    SourceCounts,
    SplitCounts,
    Tally,
)
from mft_ray.data.splits import load
from mft_ray.data.store import open_split, prepare


def write(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def sums(n: int, m: int = 0) -> list[dict[str, str]]:
    return [{"question": f"{i}+{i}=", "answer": str(2 * i)} for i in range(m, n)]


def reasons(counts: SourceCounts) -> dict[str, int]:
    return {reason: found.rows for reason, found in counts.left_out.reasons.items()}


def balanced(accounting: Accounting) -> bool:
    return all(
        counts.rows_read == counts.used + counts.joined + counts.left_out.rows for counts in accounting.sources
    ) and sum(counts.used for counts in accounting.sources) == sum(
        split.examples for split in accounting.splits.values()
    )


def test_duplicates_and_what_is_not_drawn_are_counted(tmp_path: Path) -> None:
    rows = [*sums(40), *sums(3), {"question": "7 + 7=", "answer": "14"}, {"question": "7+7=", "answer": "15"}]
    rows += [{"question": "x", "answer": None}]
    accounting, said = Accounting(), list[str]()
    config = DataConfig(task="gsm8k", train=write(tmp_path / "all.jsonl", rows), n_train=10, n_validation=5, n_test=5)
    load(config, said.append, accounting)
    [counts] = accounting.sources
    assert (counts.rows_read, counts.used, counts.joined, counts.duplicates) == (46, 20 + 1 - 1, 0, 4)
    assert reasons(counts) == {DUPLICATE: 3, SAME_PROMPT: 1, "answer is null": 1, NOT_DRAWN: 21}
    assert counts.left_out.reasons[DUPLICATE].first == [f"all.jsonl, line {n}" for n in (41, 42, 43)]
    assert counts.left_out.reasons[SAME_PROMPT].first == ["all.jsonl, line 45"]
    assert balanced(accounting)
    assert {name: split.examples for name, split in accounting.splits.items()} == {
        "train": 10,
        "validation": 5,
        "test": 5,
    }
    assert said == [
        f"5 of 46 rows of all.jsonl are left out: {DUPLICATE} (3: all.jsonl, line 41, 42, 43); {SAME_PROMPT} "
        "(1: all.jsonl, line 45); answer is null (1: all.jsonl, line 46)"
    ]


def test_what_another_split_has_is_counted(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", sums(40))
    test = write(tmp_path / "test.jsonl", [*sums(12), *sums(2)])
    accounting = Accounting()
    load(DataConfig(task="gsm8k", train=train, test=test, n_validation=5, n_test=10), print, accounting)
    ours, theirs = accounting.sources
    assert reasons(ours) == {IN_TEST: 12}
    assert all(place.startswith("train.jsonl, line ") for place in ours.left_out.reasons[IN_TEST].first)
    assert ours.used == 28
    assert reasons(theirs) == {DUPLICATE: 2, NOT_DRAWN: 2}
    assert (theirs.setting, theirs.source, theirs.used) == ("data.test", test, 10)
    assert balanced(accounting)


def test_what_was_made_from_the_same_is_counted(tmp_path: Path) -> None:
    rows = [row | {"page": f"page {n // 4}"} for n, row in enumerate(sums(80))]
    train = write(tmp_path / "all.jsonl", rows)
    accounting = Accounting()
    load(DataConfig(task="gsm8k", train=train, source_column="page", n_validation=6, n_test=10), print, accounting)
    assert reasons(accounting.sources[0]) == {
        "an example of the test split was made from the same (page)": 2,
        "an example of the validation split was made from the same (page)": 2,
    }
    assert balanced(accounting)


def test_trees_and_mixtures_add_up(tmp_path: Path) -> None:
    rows: list[Any] = []
    for n in range(9):
        rows.append({"message_id": f"{n}", "parent_id": None, "role": "prompter", "text": f"t{n}"})
        rows += [
            {"message_id": f"{n}{m}", "parent_id": f"{n}", "role": "assistant", "text": f"a{m}"} for m in range(n % 3)
        ]
    trees = write(tmp_path / "trees.jsonl", [*rows, {"message_id": "x"}, 3])
    pairs = write(tmp_path / "pairs.jsonl", [*sums(10), {"question": "0+0=", "answer": "0"}])
    mixture = [{"path": trees}, {"path": pairs, "rows": 8}, {"path": pairs}]
    config = DataConfig.model_validate({"task": "math", "mixture": mixture, "n_validation": 2, "n_test": 2})
    accounting = Accounting()
    load(config, print, accounting)
    first, second, third = accounting.sources
    assert (first.rows_read, first.used, first.joined) == (20, 6, 6)
    assert reasons(first) == {
        "it has no column parent_id": 1,
        "it is a number, not an object": 1,
        "its tree does not end with an answer": 3,
        "it is not on the best path of a tree": 3,
    }
    assert first.left_out.reasons["it is a number, not an object"].first == ["trees.jsonl, line 20"]
    assert (second.rows_read, second.used) == (8, 8)
    assert (third.rows_read, third.used, third.duplicates) == (11, 2, 9)
    assert balanced(accounting)


def test_what_became_of_the_rows_is_written_beside_the_run(tmp_path: Path) -> None:
    rows = [*sums(40), *sums(2), {"question": "1" * 30, "answer": "2"}, {"question": "1", "answer": " "}]
    train, account = write(tmp_path / "all.jsonl", rows), tmp_path / "run" / "data.json"
    config = DataConfig(task="gsm8k", train=train, n_validation=5, n_test=5, max_length=24)
    said: list[str] = []
    prepare(config, arithmetic.tokenizer(), tmp_path / "run" / "data", said.append, account)
    content = json.loads(account.read_text())
    assert content["schema"] == SCHEMA == 1
    [source] = content["sources"]
    left_out = source.pop("left_out")
    assert source == {
        "setting": "data.train",
        "source": train,
        "split": None,
        "columns": ["question", "answer"],
        "also_used": [],
        "not_used": [],
        "rows_read": 44,
        "used": 41,
        "joined": 0,
        "duplicates": 2,
        "altered": [],
    }
    assert left_out == [
        {"reason": DUPLICATE, "rows": 2, "first": ["all.jsonl, line 41", "all.jsonl, line 42"]},
        {"reason": "answer is empty", "rows": 1, "first": ["all.jsonl, line 44"]},
    ]
    splits = content["splits"]
    assert {name: split["examples"] for name, split in splits.items()} == {"train": 31, "validation": 5, "test": 5}
    for name, split in splits.items():
        stored = open_split(tmp_path / "run" / "data", name)
        assert split["used"] == len(stored) == split["examples"] - sum(one["rows"] for one in split["left_out"])
        assert split["tokens"] == sum(map(len, stored["input_ids"]))
        assert split["answer_tokens"] == sum(label != -100 for labels in stored["labels"] for label in labels)
    [long] = [one for split in splits.values() for one in split["left_out"]]
    assert (long["rows"], long["first"]) == (1, ["all.jsonl, line 43"])
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["data", "data.json"]


def test_generated_examples_are_counted_too(tmp_path: Path) -> None:
    config = DataConfig(task="arithmetic", n_train=30, n_validation=10, n_test=20)
    accounting = prepare(config, arithmetic.tokenizer(), tmp_path / "data")
    assert accounting.sources == []
    assert {name: (split.examples, split.used) for name, split in accounting.splits.items()} == {
        "train": (30, 30),
        "validation": (10, 10),
        "test": (20, 20),
    }


def test_places_name_their_file_once() -> None:
    tally = Tally()
    for place in (
        "a.jsonl, line 3",
        "a.jsonl, line 7",
        "b.parquet, row 1",
        "b.parquet, row 2",
        "c, line 1",
        "c, line 2",
    ):
        tally.add("why", place)
    tally.add("other", rows=3)
    assert tally.described() == "why (6: a.jsonl, line 3, 7, b.parquet, row 1, 2, c, line 1, ...); other (3)"
    assert (tally.rows, tally["why"], tally["none"]) == (9, 6, 0)


def test_a_split_can_say_more() -> None:
    counts = SplitCounts(examples=2, place_of=lambda name: f"a.jsonl, line {name}")
    counts.leave_out("too long", "3")
    counts.alter("cut", "4")
    assert counts.content()["left_out"] == [{"reason": "too long", "rows": 1, "first": ["a.jsonl, line 3"]}]
    assert counts.content()["altered"] == [{"reason": "cut", "rows": 1, "first": ["a.jsonl, line 4"]}]


@pytest.mark.parametrize("several", [False, True])
def test_rows_of_several_files_keep_their_places(several: bool) -> None:
    counts = SourceCounts("data.train", "folder", "/folder", "train")
    for index in range(5):
        where = "b.jsonl, line" if several and index > 2 else "a.jsonl, line"
        assert counts.read(where, 10 * index) == index
    assert counts.place(2) == "a.jsonl, line 20"
    assert counts.place_of("0:folder:train:4") == f"{'b' if several else 'a'}.jsonl, line 40"
