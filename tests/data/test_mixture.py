from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
from pydantic import ValidationError

from mft_ray.config import DataConfig
from mft_ray.data.splits import load
from mft_ray.domains import DOMAINS
from mft_ray.errors import UserError


def write(path: Path, rows: Sequence[Any]) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def mixed(*parts: dict[str, Any], **settings: Any) -> DataConfig:
    sizes = {"n_validation": 2, "n_test": 2}
    return DataConfig.model_validate({"task": "math", "mixture": list(parts)} | sizes | settings)


def prompts(config: DataConfig) -> set[str]:
    return {example.messages[0]["content"] for split in load(config).values() for example in split}


@pytest.fixture
def queries(tmp_path: Path) -> str:
    return write(tmp_path / "queries.jsonl", [{"query": f"q{n}", "response": f"r{n}"} for n in range(20)])


@pytest.fixture
def problems(tmp_path: Path) -> str:
    return write(tmp_path / "problems.jsonl", [{"problem": f"p{n}", "solution": f"s{n}"} for n in range(20)])


def tree(size: int) -> list[dict[str, Any]]:
    """Message trees as of OpenAssistant, of which every third has no answer."""
    rows: list[dict[str, Any]] = []
    for n in range(size):
        rows.append({"message_id": f"{n}", "parent_id": None, "role": "prompter", "text": f"t{n}"})
        if n % 3 < 2:
            rows.append({"message_id": f"{n}a", "parent_id": f"{n}", "role": "assistant", "text": f"a{n}"})
    return rows


def test_the_first_rows_of_every_part_are_mixed(tmp_path: Path, queries: str, problems: str) -> None:
    said: list[str] = []
    trees = write(tmp_path / "trees.jsonl", tree(9))
    config = mixed({"path": queries, "rows": 6}, {"path": problems, "rows": 3}, {"path": trees, "rows": 4})
    splits = load(config, said.append)
    # Of trees it is conversations that are counted: the third tree gives none.
    asked = {f"q{n}" for n in range(6)} | {f"p{n}" for n in range(3)} | {"t0", "t1", "t3", "t4"}
    assert {e.messages[0]["content"] for split in splits.values() for e in split} == asked
    assert {name: len(split) for name, split in splits.items()} == {"train": 9, "validation": 2, "test": 2}
    assert said == [
        "queries.jsonl: 6 conversations",
        "problems.jsonl: 3 conversations",
        "trees.jsonl: 4 conversations",
        "13 conversations in all, with 13 different prompts",
        "3 of 15 rows of trees.jsonl are left out: its tree does not end with an answer "
        "(3: trees.jsonl, line 5, 10, 15)",
    ]


def test_more_rows_than_there_are_is_all_of_them(queries: str) -> None:
    assert prompts(mixed({"path": queries, "rows": 1000})) == {f"q{n}" for n in range(20)}
    assert prompts(mixed({"path": queries})) == {f"q{n}" for n in range(20)}


def test_rows_are_counted_before_any_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"query": f"q{n}", "response": "" if n < 3 else "r"} for n in range(20)]
    assert prompts(mixed({"path": write(tmp_path / "holes.jsonl", rows), "rows": 8})) == {f"q{n}" for n in range(3, 8)}
    assert "3 of 8 rows of holes.jsonl are left out: response is empty (3: holes.jsonl, line 1, 2, 3)" in caplog.text


def test_parts_share_no_prompt_nor_id(tmp_path: Path) -> None:
    one = write(tmp_path / "a" / "rows.jsonl", [{"query": f"Q{n}", "response": "first"} for n in range(8)])
    other = write(tmp_path / "b" / "rows.jsonl", [{"query": f"q{n}", "response": "second"} for n in range(5, 12)])
    examples = [example for split in load(mixed({"path": one}, {"path": other})).values() for example in split]
    assert len({example.prompt_key for example in examples}) == len({example.id for example in examples}) == 12
    assert sum(example.answer == "first" for example in examples) == 8


def test_a_test_file_is_kept_out_of_a_mixture(tmp_path: Path, queries: str, problems: str) -> None:
    held = write(tmp_path / "held.jsonl", [{"question": f"q{n}", "answer": "x"} for n in range(4)])
    splits = load(mixed({"path": queries}, {"path": problems}, test=held))
    assert {e.messages[0]["content"] for e in splits["test"]} < {f"q{n}" for n in range(4)}
    assert sum(map(len, splits.values())) == 2 + 36


def test_columns_may_be_named(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]
    rows = [{"ask": f"ask{n}", "tell": "t", "chat": [{**turns[0], "value": f"chat{n}"}, turns[1]]} for n in range(8)]
    path = write(tmp_path / "own.jsonl", rows)
    pair = mixed({"path": path, "prompt_column": "ask", "answer_column": "tell"}, task="chat")
    assert prompts(pair) == {f"ask{n}" for n in range(8)}
    assert prompts(mixed({"path": path, "messages_column": "chat"})) == {f"chat{n}" for n in range(8)}
    with pytest.raises(UserError, match=r"data.mixture\[0\] \(own.jsonl\) has the columns ask, tell, chat.*known"):
        load(mixed({"path": path}))
    with pytest.raises(UserError, match=r"no column 'told'.*prompt_column and answer_column, in data.mixture\[0\]"):
        load(mixed({"path": path, "prompt_column": "ask", "answer_column": "told"}))
    with pytest.raises(UserError, match=r"data.mixture\[0\].answer_column is None: give both"):
        load(mixed({"path": path, "prompt_column": "ask"}))


def test_one_source_replaces_a_domains_recipe(problems: str) -> None:
    config = DataConfig(task="coding", train=problems, n_validation=2, n_test=2)
    assert prompts(config) == {f"p{n}" for n in range(20)}


def test_a_recipe_is_read_from_the_hub_and_no_more_than_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None, str]] = []

    def load_dataset(path: str, name: str | None, split: str) -> list[dict[str, Any]]:
        asked.append((path, name, split))
        (part,) = (part for part in DOMAINS["instruction"].parts if part.hub.split(":")[0] == path)
        if "oasst" in path:
            return tree(12)
        if len(part.columns) == 2:
            return [dict.fromkeys(part.columns, f"{path} {n}") for n in range(4)]
        turns = [{"role": role, "content": path} for role in ("user", "assistant")]
        return [{part.columns[0]: turns}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    examples = load(DataConfig(task="instruction", n_validation=2, n_test=2))
    assert asked == [
        ("allenai/tulu-3-sft-personas-instruction-following", None, "train[:10000]"),
        ("OpenAssistant/oasst1", None, "train[:7000]"),
        ("OpenAssistant/oasst1", None, "train"),
        ("OpenAssistant/oasst2", None, "train[:9000]"),
        ("OpenAssistant/oasst2", None, "train"),
        ("allenai/coconot", "original", "train[:10000]"),
        ("CohereForAI/aya_dataset", None, "train[:10000]"),
        ("nvidia/Daring-Anteater", None, "train[:10000]"),
    ]
    assert sum(map(len, examples.values())) == 1 + 8 + 4 + 4 + 1  # the second oasst asks what the first did


def test_a_recipe_without_the_hub_is_said_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"A part of the math recipe is 'meta-math/MetaMathQA'.*give a local file"):
        load(DataConfig(task="math"))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"task": "gsm8k"}, "task gsm8k has no mixture"),
        ({"task": "arithmetic"}, "task arithmetic has no mixture"),
        ({"train": "x.jsonl"}, "give one of train and mixture"),
    ],
)
def test_a_mixture_beside_what_excludes_it_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        mixed({"path": "rows.jsonl"}, **settings)


def test_a_single_source_says_nothing(queries: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    load(mixed({"path": queries}))
    assert "conversations" not in caplog.text
