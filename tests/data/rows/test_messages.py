from __future__ import annotations

from typing import Any

import pytest

from mft_ray.data.examples import Message
from mft_ray.data.rows.messages import ROLES, is_learned, message, role_of
from mft_ray.data.rows.values import LeftOut, Number
from mft_ray.errors import UserError

AT = "data.train: rows.jsonl, line 7"


def read(given: dict[str, Any], notes: list[str] | None = None) -> Message | None:
    return message(given, AT, ([] if notes is None else notes).append)


def reason(given: dict[str, Any]) -> str:
    with pytest.raises(LeftOut) as caught:
        read(given)
    return caught.value.reason


@pytest.mark.parametrize(
    ("name", "role"),
    [
        *((name, role) for role, names in ROLES.items() for name in names),
        ("Assistant", "assistant"),
        ("USER", "user"),
        (" Model ", "assistant"),
        ("Developer", "system"),
    ],
)
def test_roles_are_the_templates_in_any_case(name: str, role: str) -> None:
    assert read({"role": name, "content": "x"}) == {"role": role, "content": "x"}
    assert read({"from": name, "value": "x"}) == {"role": role, "content": "x"}


@pytest.mark.parametrize("name", ["moderator", "", "use r", "\ud800"])
def test_an_unknown_role_is_told_with_its_line_and_the_known(name: str) -> None:
    with pytest.raises(UserError) as caught:
        role_of({"role": name}, AT)
    text = str(caught.value)
    assert text.startswith(f"{AT} has a message of the role {name!r}")
    assert all(known in text for names in ROLES.values() for known in names)
    text.encode()


@pytest.mark.parametrize("role", [None, 3, [], {}])
def test_no_role_leaves_the_row_out(role: Any) -> None:
    assert "no role" in reason({"role": role, "content": "x"})


@pytest.mark.parametrize("given", [{"weight": 0}, {"weight": Number("0")}, {"weight": Number("0.0")}, {"weight": 0.0}])
@pytest.mark.parametrize("role", ["assistant", "gpt"])
def test_weight_0_is_carried(role: str, given: dict[str, Any]) -> None:
    assert read({"role": role, "content": "x", **given}) == {"role": "assistant", "content": "x", "weight": 0}


@pytest.mark.parametrize("name", ["train", "training", "loss"])
def test_so_is_train_false(name: str) -> None:
    assert read({"role": "assistant", "content": "x", name: False}) == {
        "role": "assistant",
        "content": "x",
        "weight": 0,
    }
    assert read({"role": "assistant", "content": "x", name: True}) == {"role": "assistant", "content": "x"}


@pytest.mark.parametrize("weight", [1, 1.0, Number("1"), Number("1.0"), True, None])
def test_weight_1_is_as_none(weight: Any) -> None:
    assert read({"role": "assistant", "content": "x", "weight": weight}) == {"role": "assistant", "content": "x"}
    assert read({"role": "user", "content": "x", "weight": 0}) == {"role": "user", "content": "x"}


@pytest.mark.parametrize("weight", [0.5, Number("0.5"), Number("10"), 2, -1, "half", [0], {}, float("nan"), ""])
def test_another_weight_is_refused(weight: Any) -> None:
    with pytest.raises(UserError, match=r"line 7 has a message with weight .*give 1 or 0"):
        is_learned({"weight": weight}, AT)


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo", "days": 3}}}


@pytest.mark.parametrize(
    "calls",
    [
        [CALL],
        [{"type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo", "days": 3}'}}],
        [{"name": "weather", "arguments": {"city": "Oslo", "days": Number("3")}}],
    ],
)
def test_tool_calls_are_kept_and_their_arguments_are_objects(calls: list[Any]) -> None:
    for content in ({"content": None}, {}):
        assert read({"role": "assistant", "tool_calls": calls, **content}) == {
            "role": "assistant",
            "content": None,
            "tool_calls": [CALL],
        }
    both = read({"role": "assistant", "content": "", "tool_calls": calls})
    assert both is not None
    assert both["content"] == ""


def test_ids_names_and_thoughts_are_kept() -> None:
    call = {"id": "c1", **CALL}
    assert read({"role": "assistant", "content": None, "tool_calls": [call]})["tool_calls"] == [call]  # type: ignore[index]
    told = {"role": "tool", "content": "rain", "tool_call_id": "c1", "name": "weather"}
    assert read(told) == told
    for name in ("reasoning_content", "reasoning", "thinking"):
        found = read({"role": "assistant", "content": "yes", name: "hm"})
        assert found == {"role": "assistant", "content": "yes", "reasoning_content": "hm"}


def test_other_ways_to_write_a_call() -> None:
    text = '{"name": "weather", "arguments": {"city": "Oslo", "days": 3}}'
    expected = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    assert read({"from": "function_call", "value": text}) == expected
    assert read({"role": "Tool_Call", "content": f"[{text}]"}) == expected
    old = {"name": "weather", "arguments": '{"city": "Oslo", "days": 3}'}
    assert read({"role": "assistant", "content": None, "function_call": old}) == expected
    assert read({"from": "observation", "value": "rain"}) == {"role": "tool", "content": "rain"}


def test_what_is_read_otherwise_is_noted() -> None:
    notes: list[str] = []
    read({"from": "function_call", "value": '{"name": "f"}'}, notes)
    read({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{}"}]}, notes)
    assert read({"role": "system", "content": None}, notes) is None
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert read({"role": "user", "content": parts, "audio": "x.wav"}, notes) == {"role": "user", "content": "ab"}
    assert notes == [
        "a function_call turn is read as the assistant's tool call",
        "arguments of tool calls that are JSON text are read as objects",
        "a system message without content is left away",
        "content in parts of text is joined",
        "audio of a message is not used",
    ]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"tool_calls": "no"}, "tool_calls is text that is not JSON"),
        ({"tool_calls": {"name": "f"}}, "tool_calls is not a list"),
        ({"tool_calls": [{}]}, "a tool call has no function name"),
        ({"tool_calls": [{"name": " "}]}, "a tool call has no function name"),
        ({"tool_calls": ["f"]}, "a tool call has no function name"),
        (
            {"tool_calls": [{"name": "f", "arguments": "city=Oslo"}]},
            "arguments of a tool call are text that is not JSON",
        ),
        ({"tool_calls": [{"name": "f", "arguments": "[1]"}]}, "arguments of a tool call are not an object"),
        ({"tool_calls": [{"name": "f", "arguments": 3}]}, "arguments of a tool call are not an object"),
        ({"tool_calls": [], "content": None}, "a message of the role assistant has no content"),
        (
            {"content": [{"type": "image_url"}]},
            "content of a message of the role assistant has a part that is not text",
        ),
        ({"content": [3]}, "content of a message of the role assistant has a part that is not text"),
        ({"content": {"text": "x"}}, "content of a message of the role assistant is an object, not text"),
        ({"content": True}, "content of a message of the role assistant is true or false, not text"),
        ({"content": "x", "name": []}, "name of a message is a list, not text"),
    ],
)
def test_what_cannot_be_read_leaves_the_row_out(given: dict[str, Any], why: str) -> None:
    assert reason({"role": "assistant", **given}) == why
