from __future__ import annotations

from typing import Any

import pytest

from mft_ray.data.rows.trees import Path, node, paths
from mft_ray.data.rows.values import LeftOut, Number
from mft_ray.errors import UserError


def read(rows: list[dict[str, Any]]) -> list[Path]:
    return list(paths([node(row, index, f"rows.jsonl, line {index + 1}") for index, row in enumerate(rows)]))


def message(name: str, parent: str | None, role: str, quality: float | None = None, **more: Any) -> dict[str, Any]:
    """A row as OpenAssistant's."""
    labels = None if quality is None else {"name": ["spam", "quality"], "value": [0.0, quality], "count": [1, 1]}
    return {"message_id": name, "parent_id": parent, "text": name, "role": role, "labels": labels, **more}


def test_of_a_tree_the_best_replies_are_taken() -> None:
    rows = [
        message("root", None, "prompter"),
        message("poor", "root", "assistant", 0.2),
        message("gone", "root", "assistant", 0.9, deleted=True),
        message("good", "root", "assistant", 0.7),
        message("alike", "root", "assistant", 0.7),
        message("more", "good", "prompter"),
        message("end", "more", "assistant"),
        message("aside", "poor", "prompter", 1.0),
        message("another root", None, "prompter"),
        message("its answer", "another root", "assistant"),
    ]
    found = read(rows)
    assert [[m["content"] for m in path.messages] for path in found] == [
        ["root", "good", "more", "end"],
        ["another root", "its answer"],
    ]
    assert [m["role"] for m in found[0].messages] == ["user", "assistant", "user", "assistant"]
    assert [path.indices for path in found] == [(0, 3, 5, 6), (8, 9)]
    assert [path.reason for path in found] == [None, None]


def test_quality_is_a_number_however_it_is_written() -> None:
    low, high = message("low", "root", "assistant", 0.0), message("high", "root", "assistant", 0.0)
    low["labels"]["value"], high["labels"]["value"] = [Number("0"), Number("9e-1")], [Number("0"), Number("1e0")]
    [path] = read([message("root", None, "prompter"), low, high])
    assert path.messages[1]["content"] == "high"
    high["labels"] = {"name": "quality", "value": None}
    assert read([message("root", None, "prompter"), high, low])[0].messages[1]["content"] == "low"


def test_trees_that_end_without_an_answer_say_why() -> None:
    rows = [
        message("unanswered", None, "prompter"),
        message("asked again", None, "prompter"),
        message("answer", "asked again", "assistant"),
        message("question", "answer", "prompter"),
        message("deleted", None, "prompter", deleted=True),
        message("its answer", "deleted", "assistant"),
        message("empty", None, "prompter"),
        {**message("silence", "empty", "assistant"), "text": None},
    ]
    assert [path.reason for path in read(rows)] == [
        "its tree does not end with an answer",
        "its tree does not end with an answer",
        "the first message of its tree is deleted",
        "a message of its tree is empty",
    ]


def test_a_row_that_is_no_message_is_left_out() -> None:
    row = message("a", None, "prompter")
    for column, value, why in [
        ("message_id", None, "message_id is null"),
        ("parent_id", ["x"], "parent_id is a list, not text"),
        ("text", {}, "text is an object, not text"),
        ("role", None, "a message has no role (role, or from as in ShareGPT files)"),
    ]:
        with pytest.raises(LeftOut) as caught:
            node({**row, column: value}, 0, "rows.jsonl, line 1")
        assert caught.value.reason == why


def test_a_circle_of_messages_ends() -> None:
    rows = [message("a", None, "prompter"), message("b", "a", "assistant"), message("a", "b", "prompter")]
    assert [path.reason for path in read(rows)] == ["its tree does not end with an answer"]


def test_an_unknown_role_in_a_tree_is_told() -> None:
    rows = [message("a", None, "prompter"), message("b", "a", "robot")]
    with pytest.raises(UserError, match=r"line 2 has a message of the role 'robot', which is unknown.*prompter"):
        read(rows)
    with pytest.raises(UserError, match=r"role 'system'.*are prompter and assistant"):
        read([message("a", None, "system")])
