from __future__ import annotations

import json
from typing import Any

import pytest

from mft_ray.data.examples import Message
from mft_ray.data.rows.formats import FORMS, Read, beside, conversation, find_columns
from mft_ray.data.rows.values import LeftOut, Number
from mft_ray.errors import UserError


def read_row(row: dict[str, Any], *columns: str, notes: list[str] | None = None) -> Read:
    """A row as a conversation, its columns found unless they are named."""
    known = columns or find_columns(list(row), "rows", "")
    return conversation(row, known, beside(known, row), "rows.jsonl, line 1", (notes or []).append)


def turns(messages: tuple[Message, ...]) -> list[tuple[str, str | None]]:
    return [(message["role"], message["content"]) for message in messages]


def read(row: dict[str, Any], *columns: str) -> list[tuple[str, str | None]]:
    """Roles and contents of a row's conversation."""
    return turns(read_row(row, *columns).messages)


def reason(row: dict[str, Any], *columns: str) -> str:
    """Why a row is left out."""
    with pytest.raises(LeftOut) as caught:
        read_row(row, *columns)
    return caught.value.reason


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
    assert read(row) == ASKED


def test_a_system_column_opens_a_conversation() -> None:
    row = {"system": "Be brief.", "mask": "User", "conversations": TURNS}
    assert read(row) == [("system", "Be brief."), *ASKED]


@pytest.mark.parametrize("column", ["system", "system_prompt", "system_message"])
@pytest.mark.parametrize(
    "row",
    [
        {"messages": TURNS},
        {"instruction": "a question", "output": "an answer"},
        {"question": "a question", "answer": "an answer"},
    ],
)
def test_a_system_column_beside_any_form_is_the_system_message(column: str, row: dict[str, Any]) -> None:
    assert read({column: "Be brief.", **row}) == [("system", "Be brief."), *ASKED]
    assert read({column: None, **row}) == read({column: " ", **row}) == ASKED
    assert reason({column: ["x"], **row}) == f"{column} is a list, not text"


def test_a_system_column_and_a_system_message_are_one_or_a_riddle() -> None:
    opened = [{"role": "system", "content": "Be brief."}, *TURNS]
    assert read({"system": "Be brief.", "messages": opened}) == [("system", "Be brief."), *ASKED]
    assert reason({"system": "Be long.", "messages": opened}) == "its column system and its system message differ"


@pytest.mark.parametrize(
    "history",
    [
        [["before?", "before."]],
        [("before?", "before.")],
        [{"role": "user", "content": "before?"}, {"role": "assistant", "content": "before."}],
        [{"from": "human", "value": "before?"}, {"from": "gpt", "value": "before."}],
        '[["before?", "before."]]',
    ],
)
def test_history_is_earlier_turns_of_which_nothing_is_learned(history: Any) -> None:
    for form in ({"instruction": "a question", "output": "an answer"}, {"messages": TURNS}):
        found = read_row({"system": "Be brief.", "history": history, **form}).messages
        assert turns(found) == [("system", "Be brief."), ("user", "before?"), ("assistant", "before."), *ASKED]
        assert [message.get("weight") for message in found] == [None, None, 0, None, None]


def test_history_stands_after_the_conversations_own_system_message() -> None:
    opened = [{"role": "system", "content": "Be brief."}, *TURNS]
    found = read({"history": [["before?", "before."]], "messages": opened})
    assert [role for role, _ in found] == ["system", "user", "assistant", "user", "assistant"]


@pytest.mark.parametrize("history", [None, [], "", "[]"])
def test_no_history_is_none(history: Any) -> None:
    assert read({"instruction": "a question", "output": "an answer", "history": history}) == ASKED


@pytest.mark.parametrize("history", [[["alone"]], ["x", "y"], [1], "text", {"a": "b"}, True])
def test_history_of_another_shape_leaves_the_row_out(history: Any) -> None:
    assert "history is neither" in reason({"instruction": "q", "output": "a", "history": history})


def test_what_a_question_is_about_stands_with_it() -> None:
    assert read({"instruction": "Sum it.", "input": "1 2", "output": "3"})[0] == ("user", "Sum it.\n\n1 2")
    assert read({"instruction": "Sum it.", "context": "1 2", "response": "3"})[0] == ("user", "Sum it.\n\n1 2")
    assert read({"question": "Sum?", "context": "1 2", "answer": "3"})[0] == ("user", "1 2\n\nSum?")
    assert read({"instruction": "Sum it.", "input": None, "output": "3"})[0] == ("user", "Sum it.")
    assert read({"instruction": "", "input": "1 + 2", "output": "3"})[0] == ("user", "1 + 2")


def test_prompt_and_answer_may_be_lists_of_messages() -> None:
    prompt = [{"role": "system", "content": "s"}, *TURNS, {"role": "user", "content": "again?"}]
    found = read_row({"prompt": prompt, "completion": [{"role": "assistant", "content": "yes"}]}).messages
    assert turns(found) == [("system", "s"), *ASKED, ("user", "again?"), ("assistant", "yes")]
    # What stands in the prompt is context.
    assert [message.get("weight") for message in found] == [None, None, 0, None, None]


def test_numbers_are_the_text_that_was_written() -> None:
    row = {"prompt": Number("1.50"), "response": Number("12345678901234567890123")}
    assert read(row) == [("user", "1.50"), ("assistant", "12345678901234567890123")]
    message = {"role": "assistant", "content": Number("1e3")}
    assert read({"messages": [TURNS[0], message]})[1] == ("assistant", "1e3")
    assert {type(content) for _, content in read(row)} == {str}


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (None, "answer is null"),
        (True, "answer is true or false, not text"),
        (float("nan"), "answer is NaN or infinite"),
        ({}, "answer is an object, not text"),
        (["a"], "answer is a list, not text"),
        (b"a", "answer is of the type bytes, not text"),
        ("", "answer is empty"),
        (" \n\t\u3000", "answer is empty"),
        ("\ud800", "answer has half of a surrogate pair, which is no character"),
    ],
)
def test_what_is_no_text_leaves_the_row_out(value: Any, why: str) -> None:
    assert reason({"question": "q", "answer": value}) == why
    assert reason({"answer": "a", "question": value}) == why.replace("answer", "question")


def test_a_row_without_the_columns_says_which() -> None:
    assert reason({"question": "q"}, "question", "answer") == "it has no column answer"


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        (None, "messages is null"),
        ("hello", "messages is not a list of messages, each an object with role and content"),
        (["hello"], "messages is not a list of messages, each an object with role and content"),
        ([], "messages has no answer of an assistant"),
        (TURNS[:1], "messages has no answer of an assistant"),
        (TURNS[1:], "nothing stands before its answer"),
        ([{"content": "hi"}], "a message has no role (role, or from as in ShareGPT files)"),
        ([{"role": "user"}, TURNS[1]], "a message of the role user has no content"),
        ([{"role": "user", "content": None}, TURNS[1]], "a message of the role user has no content"),
        ([{"role": "user", "content": " "}, TURNS[1]], "a message of the role user is empty"),
        ([TURNS[0], {"role": "assistant", "content": ""}], "a message of the role assistant is empty"),
        ([TURNS[0], {"role": "assistant", "content": None}], "a message of the role assistant has no content"),
        ([TURNS[0], {"role": "assistant", "content": None}, *TURNS], "a message of the role assistant has no content"),
        ([TURNS[0], {**TURNS[1], "weight": 0}], "no answer is to be learned (weight 0)"),
    ],
)
def test_conversations_that_teach_nothing_are_left_out(messages: Any, why: str) -> None:
    assert reason({"messages": messages}) == why


def test_a_conversation_may_be_json_text() -> None:
    assert read({"messages": json.dumps(TURNS)}) == ASKED


def test_what_follows_the_last_answer_is_not_used_and_noted() -> None:
    notes: list[str] = []
    columns = ("messages",)
    row = {"messages": [*TURNS, {"role": "user", "content": None}]}
    assert turns(conversation(row, columns, (), "x", notes.append).messages) == ASKED
    assert notes == ["what follows the last answer is not used"]
    # So an answer of weight 0 at the end, of which nothing is learned.
    again = [*TURNS, TURNS[0], {**TURNS[1], "weight": 0}]
    assert read({"messages": again}) == ASKED


def test_tools_are_kept_as_templates_take_them() -> None:
    schema = {"name": "weather", "parameters": {"type": "object", "properties": {"days": {"maximum": Number("7")}}}}
    plain = {"type": "function", "function": json.loads(json.dumps(schema).replace('"7"', "7"))}
    for given in (
        [schema],
        [{"type": "function", "function": schema}],
        json.dumps([plain]),
        [{"type": "function", **schema}],
    ):
        for column in ("tools", "functions"):
            assert read_row({"messages": TURNS, column: given}).tools == [plain]
    assert read_row({"messages": TURNS, "tools": None}).tools is None
    assert read_row({"messages": TURNS, "tools": []}).tools is None
    assert read_row({"messages": TURNS, "tools": ""}).tools is None
    assert reason({"messages": TURNS, "tools": "weather"}) == "tools is text that is not JSON"
    assert reason({"messages": TURNS, "tools": [3]}) == "tools is not a list of JSON schemas"
    assert reason({"messages": TURNS, "tools": [{}]}) == "a tool has no name"


def test_unknown_columns_are_told_beside_the_forms() -> None:
    with pytest.raises(UserError) as caught:
        find_columns(["ask", "tell"], "data.mixture[1] (rows.jsonl)", "Name them.")
    text = str(caught.value)
    assert text.startswith("data.mixture[1] (rows.jsonl) has the columns ask, tell")
    assert text.endswith("Name them.")
    assert all(", ".join(columns) in text for columns in FORMS)
