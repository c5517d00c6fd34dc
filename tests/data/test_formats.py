from __future__ import annotations

from typing import Any

import pytest

from mft_ray.data.formats import FORMS, conversations, find_columns
from mft_ray.domains import TREE
from mft_ray.errors import UserError


def read(rows: list[dict[str, Any]]) -> list[list[tuple[str, str]]]:
    """Conversations as roles and contents, their columns found."""
    columns = find_columns(list(rows[0]), "rows", "")
    return [[(m["role"], m["content"]) for m in messages] for _, messages in conversations(rows, columns, "rows")]


ASKED = [("user", "a question"), ("assistant", "an answer")]
TURNS = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": "an answer"}]


@pytest.mark.parametrize(
    "row",
    [
        {"id": "1", "prompt": "of tulu's", "messages": TURNS, "constraints": ["x"]},
        {"source": "x", "problem": "of numina's", "solution": "s", "messages": TURNS},
        {"conversations": [{"from": "User", "value": "a question"}, {"from": "Assistant", "value": "an answer"}]},
        {"conversations": [{"from": "human", "value": "a question"}, {"from": "gpt", "value": "an answer"}]},
        {"conversations": TURNS, "system": " "},
        {"prompt": "a question", "response": "an answer", "category": "x"},
        {"prompt": "a question", "completion": "an answer"},
        {"instruction": "a question", "input": "", "response": "", "output": "an answer"},
        {"instruction": "a question", "response": "an answer"},
        {"type": "x", "query": "a question", "original_question": "x", "response": "an answer"},
        {"query": "a question", "answer": "an answer", "resource": "x", "lang": "python"},
        {"question": "a question", "answer": "an answer"},
        {"problem": "a question", "solution": "an answer"},
        {"inputs": "a question", "targets": "an answer", "language": "English"},
    ],
    ids=lambda row: "-".join(row),
)
def test_rows_of_every_form_are_known_by_their_columns(row: dict[str, Any]) -> None:
    assert read([row]) == [ASKED]


def test_a_system_column_opens_a_conversation() -> None:
    row = {"system": "Be brief.", "mask": "User", "conversations": TURNS}
    assert read([row]) == [[("system", "Be brief."), *ASKED]]


def test_rows_without_an_answer_give_nothing_and_others_keep_their_place() -> None:
    rows = [{"query": "q", "answer": " "}, {"query": "q", "answer": "a"}, {"query": None, "answer": "a"}]
    assert [index for index, _ in conversations(rows, ("query", "answer"), "rows")] == [1]


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
    found = list(conversations(rows, TREE, "rows"))
    assert [[m["content"] for m in messages] for _, messages in found] == [
        ["root", "good", "more", "end"],
        ["another root", "its answer"],
    ]
    assert [m["role"] for m in found[0][1]] == ["user", "assistant", "user", "assistant"]
    assert [index for index, _ in found] == [0, 8]


def test_trees_that_end_without_an_answer_give_nothing() -> None:
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
    assert list(conversations(rows, TREE, "rows")) == []


def test_a_circle_of_messages_ends() -> None:
    rows = [message("a", None, "prompter"), message("b", "a", "assistant"), message("a", "b", "prompter")]
    assert list(conversations(rows, TREE, "rows")) == []


def test_an_unknown_role_in_a_tree_is_told() -> None:
    rows = [message("a", None, "prompter"), message("b", "a", "robot")]
    with pytest.raises(UserError, match=r"role 'robot'.*are prompter and assistant"):
        list(conversations(rows, TREE, "data.mixture[0] (x)"))


def test_unknown_columns_are_told_beside_the_forms() -> None:
    with pytest.raises(UserError) as caught:
        find_columns(["ask", "tell"], "data.mixture[1] (rows.jsonl)", "Name them.")
    text = str(caught.value)
    assert text.startswith("data.mixture[1] (rows.jsonl) has the columns ask, tell")
    assert text.endswith("Name them.")
    assert all(", ".join(columns) in text for columns in FORMS)
