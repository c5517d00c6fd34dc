"""Rows of any shape give examples, omissions that are counted, or a user's error: never another exception.

`MFT_FUZZ_EXAMPLES=20000` looks longer.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mft_ray.config import DataConfig
from mft_ray.data.accounting import Accounting
from mft_ray.data.examples import Example
from mft_ray.data.rows.files import rows as rows_of
from mft_ray.data.rows.formats import BESIDE, CONVERSATIONAL
from mft_ray.data.rows.messages import CALLS, ROLES
from mft_ray.data.splits import load
from mft_ray.domains import TREE
from mft_ray.errors import UserError
from mft_ray.evaluation.tasks import load_task

EXAMPLES = int(os.environ.get("MFT_FUZZ_EXAMPLES", "80"))
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)

# Surrogates too: JSON can write halves of them.
texts = st.one_of(
    st.sampled_from(["", " ", "x", "null", "[]", "{}", '[{"role": "user"}]', "\ud800", "\u2028", "1e999", "9" * 5000]),
    st.text(st.characters(), max_size=8),
)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts)
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)
roles = st.sampled_from([*(name for names in ROLES.values() for name in names), *CALLS, "User", "BOT"])
calls = st.one_of(
    anything,
    st.lists(
        st.fixed_dictionaries({"function": st.fixed_dictionaries({"name": texts, "arguments": anything})}), max_size=2
    ),
)
messages = st.fixed_dictionaries(
    {},
    optional={
        "role": st.one_of(roles, roles, roles, scalars),
        "from": roles,
        "content": st.one_of(texts, texts, anything),
        "value": texts,
        "tool_calls": calls,
        "function_call": anything,
        "weight": st.one_of(st.sampled_from([0, 1, 1, "0", 0.5]), scalars),
        "train": st.booleans(),
        "name": scalars,
        "tool_call_id": scalars,
        "reasoning_content": scalars,
        "audio": scalars,
    },
)
# What is nearly right goes deeper than what is not right at all.
sound = st.lists(
    st.fixed_dictionaries(
        {"role": roles, "content": texts}, optional={"tool_calls": calls, "weight": st.integers(0, 1)}
    ),
    max_size=4,
)
values = st.one_of(
    texts, anything, sound, st.lists(messages, max_size=3), st.lists(st.lists(texts, max_size=3), max_size=2)
)
COLUMNS = sorted({*CONVERSATIONAL, *BESIDE, *TREE, "labels", "deleted", "document", "x\ud800"})
tree = {
    "message_id": st.sampled_from(["a", "b", "c", 1]),
    "parent_id": st.sampled_from([None, None, "a", "b", "c", "1"]),
    "role": st.sampled_from(["prompter", "assistant", "user"]),
    "text": st.one_of(texts, scalars),
}
labels = st.one_of(
    anything, st.fixed_dictionaries({"name": st.just(["quality"]), "value": st.lists(scalars, max_size=1)})
)
rows = st.one_of(
    st.dictionaries(st.sampled_from(COLUMNS), values, max_size=5),
    st.fixed_dictionaries({"messages": sound}, optional=dict.fromkeys(BESIDE, values)),
    st.fixed_dictionaries({"instruction": values, "output": values}, optional=dict.fromkeys(BESIDE, values)),
    st.fixed_dictionaries(tree, optional={"labels": labels, "deleted": scalars}),
    anything,
)
configs = st.sampled_from(
    [
        {"task": "math"},
        {"task": "math", "source_column": "document"},
        {"task": "math", "ignore_columns": ["system", "messages"]},
        {"task": "chat"},
        {"task": "chat", "prompt_column": "instruction", "answer_column": "output"},
        {"task": "chat", "messages_column": "history"},
        {"task": "gsm8k"},
    ]
)


def as_lines(given: list[Any]) -> str:
    return "\n".join(map(json.dumps, given))


def as_list(given: list[Any]) -> str:
    return json.dumps(given, indent=1)


@fuzzed
@given(
    st.lists(rows, max_size=12),
    configs,
    st.sampled_from([(".jsonl", as_lines), (".json", as_list), (".json", as_lines)]),
)
def test_rows_of_any_shape(
    given: list[Any], config: dict[str, Any], form: tuple[str, Callable[[list[Any]], str]]
) -> None:
    # Enough good ones beside them for the splits, where they are read alike.
    good = [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a"}]} for n in range(5)
    ]
    suffix, write = form
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{suffix}"
        path.write_text(write([*given, *good]))
        check(DataConfig.model_validate({"train": str(path), "n_validation": 2, "n_test": 2, **config}))


@fuzzed
@given(
    st.lists(st.dictionaries(st.sampled_from(COLUMNS[:-1]), values, max_size=4), max_size=6), st.sampled_from(",;\t")
)
def test_tables_of_any_shape(given: list[dict[str, Any]], delimiter: str) -> None:
    columns = sorted({column for row in given for column in row})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        with path.open("w", newline="", encoding="utf-8", errors="replace") as file:
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerow(columns)
            for row in given:
                cells = [row[column] for column in columns if column in row]
                writer.writerow(cell if isinstance(cell, str) else json.dumps(cell) for cell in cells)
        check(DataConfig(task="math", train=str(path), n_validation=2, n_test=2))


@fuzzed
@given(
    st.lists(rows, max_size=4),
    st.binary(max_size=12),
    st.integers(0, 200),
    st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".jsonl.gz", ".parquet"]),
)
def test_files_that_are_damaged(given: list[Any], damage: bytes, at: int, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{suffix}"
        whole = as_lines(given).encode()
        path.write_bytes(whole[:at] + damage + whole[at + 1 :])
        with contextlib.suppress(ValueError, OSError, EOFError):
            assert all(number > 0 for number, _ in rows_of(path))
        check(DataConfig(task="math", train=str(path), n_validation=2, n_test=2))


@fuzzed
@given(st.lists(st.fixed_dictionaries({}, optional={"prompt": values, "answer": values, "x": anything}), max_size=3))
def test_tasks_of_ones_own(given: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mine.jsonl"
        path.write_text(as_lines(given))
        try:
            task = load_task(str(path))
        except UserError as error:
            str(error).encode()
        else:
            assert all(isinstance(prompt, str) and prompt.strip() for prompt in task.prompts)
            assert len(task.score(["x"] * len(task.prompts))) == len(given)


def check(config: DataConfig) -> None:
    """Load, and see that what comes out can be used and that no row is missing from the accounts."""
    said: list[str] = []
    accounting = Accounting()
    try:
        splits = load(config, said.append, accounting)
    except UserError as error:
        str(error).encode()  # can be printed
        return
    finally:
        "\n".join(said).encode()
    for examples in splits.values():
        for example in examples:
            check_example(example)
    [counts] = accounting.sources
    assert counts.rows_read == counts.used + counts.joined + counts.left_out.rows
    assert counts.used == sum(map(len, splits.values()))
    json.dumps(accounting.content()).encode()


def check_example(example: Example) -> None:
    assert isinstance(example, Example)
    assert example.answer.strip() or example.messages[-1].get("tool_calls")
    assert example.messages[-1].get("weight") != 0
    for message in example.messages:
        assert message["role"] in ROLES
        assert isinstance(message["content"], str) or message["tool_calls"]
        # As templates write them.
        json.dumps(message, ensure_ascii=False, allow_nan=False).encode()
    json.dumps(example.tools, ensure_ascii=False, allow_nan=False).encode()


@pytest.mark.parametrize("depth", [50, 200, 900, 5000])
def test_values_nested_however_deep(tmp_path: Path, depth: int) -> None:
    deep = "[" * depth + "]" * depth
    turns = '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]'
    for line in (
        f'{{"messages": {deep}}}',
        f'{{"messages": {turns}, "tools": {deep}}}',
        f'{{"messages": {turns}, "tools": [{{"name": "f", "x": {deep}}}]}}',
        f'{{"messages": {turns}, "history": {deep}}}',
        f'{{"messages": {turns}, "other": {deep}}}',
        f'{{"messages": [{{"role": "assistant", "content": null, "tool_calls": {deep}}}]}}',
        f'{{"message_id": {deep}, "parent_id": null, "role": "user", "text": "x"}}',
    ):
        (tmp_path / "rows.jsonl").write_text(f"{line}\n" * 5)
        check(DataConfig(task="math", train=str(tmp_path / "rows.jsonl"), n_validation=2, n_test=2))
