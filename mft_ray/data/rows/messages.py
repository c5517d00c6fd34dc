"""One message of a conversation, however its file writes it: roles, content, tool calls, what is learned of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mft_ray.data.examples import Message
from mft_ray.data.rows.values import LeftOut, Number, as_json, as_text, loads
from mft_ray.errors import UserError
from mft_ray.utils.json_types import JsonObject

Note = Callable[[str], None]  # told what of a row is read otherwise than it stands there

# What files call the roles of chat templates; case does not matter.
ROLES = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "model", "bot", "ai", "chatgpt", "chatbot"),
    "tool": ("tool", "function", "observation", "ipython", "tool_response", "function_response"),
}
CALLS = ("function_call", "tool_call")  # roles of ShareGPT-like files: an assistant's tool call as JSON text
_ROLE_OF = {name: role for role, names in ROLES.items() for name in names}
_WEIGHTS = ("weight", "train", "training", "loss")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_NOT_TEXT = ("images", "image", "audio", "video", "refusal")


def role_of(given: Mapping[str, Any], where: str) -> str:
    """Return the role of a message: one of `ROLES`, or of `CALLS`.

    Args:
        given: the message, with ``role`` or ``from``.
        where: file and line, for the error.

    Raises:
        LeftOut: it has none.
        UserError: the role is unknown.
    """
    role = given.get("role") if given.get("role") is not None else given.get("from")
    if not isinstance(role, str):
        raise LeftOut("a message has no role (role, or from as in ShareGPT files)")
    name = role.strip().lower()
    if name in CALLS:
        return name
    if name not in _ROLE_OF:
        known = "; ".join(f"{meant}: {', '.join(names)}" for meant, names in ROLES.items())
        raise UserError(
            f"{where} has a message of the role {role[:40]!r}, which is unknown. Known are, in any case, {known}; and "
            f"{', '.join(CALLS)} for an assistant's tool call as JSON text. Rename the role in the file."
        )
    return _ROLE_OF[name]


def is_learned(given: Mapping[str, Any], where: str) -> bool:
    """Return whether an assistant's message is to be learned: not with ``weight: 0`` or ``train: false``.

    Raises:
        UserError: the weight is another one than 0 or 1.
    """
    for name in _WEIGHTS:
        value = given.get(name)
        if value is None:
            continue
        text = str(value).strip().lower() if isinstance(value, (str, int, float)) else "?"
        text = text.rstrip("0").rstrip(".") or "0" if "." in text else text
        if text in ("0", "false"):
            return False
        if text not in ("1", "true"):
            raise UserError(
                f"{where} has a message with {name} {str(value)[:40]!r}. A message is learned or not: give 1 or 0, or "
                "true or false."
            )
    return True


def message(given: Mapping[str, Any], where: str, note: Note) -> Message | None:
    """Read one message; None for a system message that says nothing.

    Args:
        given: the message.
        where: file and line, for errors.
        note: told what is read otherwise than it stands there.

    Raises:
        LeftOut: its row cannot be used.
        UserError: as of `role_of` and `is_learned`.
    """
    role = role_of(given, where)
    content = given["content"] if given.get("content") is not None else given.get("value")
    if role in CALLS:
        found: Message = {"role": "assistant", "content": None, "tool_calls": _calls_in_text(content)}
        note(f"a {role} turn is read as the assistant's tool call")
    else:
        calls = _tool_calls(given, note) if role == "assistant" else []
        if content is None and role == "system":
            note("a system message without content is left away")
            return None
        if content is None and not calls:
            raise LeftOut(f"a message of the role {role} has no content")
        found = {"role": role, "content": None if content is None else _content(content, role, note)}
        if calls:
            found["tool_calls"] = calls
    for name in ("name", "tool_call_id"):
        if given.get(name) is not None:
            found[name] = as_text(given[name], f"{name} of a message")  # type: ignore[literal-required]
    if role == "assistant" and (thought := _thought(given)):
        found["reasoning_content"] = thought
    if found["role"] == "assistant" and not is_learned(given, where):
        found["weight"] = 0
    for name in _NOT_TEXT:
        if given.get(name):
            note(f"{name} of a message is not used")
    return found


def check_not_empty(found: Message) -> None:
    """Refuse a message that says nothing where something is asked or learned.

    Raises:
        LeftOut: a user's message or an answer to be learned is empty.
    """
    learned = found["role"] == "assistant" and found.get("weight") != 0 and "tool_calls" not in found
    if (found["role"] == "user" or learned) and not (found["content"] or "").strip():
        raise LeftOut(f"a message of the role {found['role']} is empty")


def tools(given: Any) -> list[JsonObject] | None:
    """Read the JSON schemas of tools, as chat templates take them; None if there are none.

    Args:
        given: a list of schemas, or its JSON text; those that name a function only are wrapped as OpenAI's are.

    Raises:
        LeftOut: it is something else.
    """
    if given is None or (isinstance(given, str) and not given.strip()):
        return None
    listed = as_json(given, "tools")
    listed = [listed] if isinstance(listed, dict) else listed
    if not isinstance(listed, list) or not all(isinstance(tool, dict) for tool in listed):
        raise LeftOut("tools is not a list of JSON schemas")
    return [_wrapped(tool) for tool in listed] or None


def _wrapped(tool: JsonObject) -> JsonObject:
    if isinstance(tool.get("function"), dict):
        return tool
    if not isinstance(tool.get("name"), str):
        raise LeftOut("a tool has no name")
    return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}


def _content(content: Any, role: str, note: Note) -> str:
    what = f"content of a message of the role {role}"
    if not isinstance(content, list):
        return as_text(content, what, empty=True)
    texts = []
    for part in content:
        if isinstance(part, Mapping) and part.get("type", "text") == "text" and "text" in part:
            texts.append(as_text(part["text"], what, empty=True))
        elif isinstance(part, str) and not isinstance(part, Number):
            texts.append(as_text(part, what, empty=True))
        else:
            raise LeftOut(f"{what} has a part that is not text")
    note("content in parts of text is joined")
    return "".join(texts)


def _thought(given: Mapping[str, Any]) -> str | None:
    for name in _THOUGHTS:
        if given.get(name) is not None:
            return as_text(given[name], f"{name} of a message", empty=True)
    return None


def _tool_calls(given: Mapping[str, Any], note: Note) -> list[JsonObject]:
    calls = given.get("tool_calls")
    if not calls and given.get("function_call"):  # as OpenAI's chats had it at first
        calls = [given["function_call"]]
    if not calls:
        return []
    found = as_json(calls, "tool_calls")
    if not isinstance(found, list):
        raise LeftOut("tool_calls is not a list")
    return [_call(call, note) for call in found]


def _calls_in_text(content: Any) -> list[JsonObject]:
    found = as_json(content, "a function_call turn")
    calls = [_call(call, _ignore) for call in (found if isinstance(found, list) else [found])]
    if not calls:
        raise LeftOut("a function_call turn calls nothing")
    return calls


def _call(call: Any, note: Note) -> JsonObject:
    """One call as transformers passes it to templates, its arguments an object: templates write them as JSON."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"].strip():
        raise LeftOut("a tool call has no function name")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        note("arguments of tool calls that are JSON text are read as objects")
        try:
            arguments = as_json(loads(arguments), "arguments of a tool call") if arguments.strip() else None
        except ValueError:
            raise LeftOut("arguments of a tool call are text that is not JSON") from None
    if not isinstance(arguments, dict | None):
        raise LeftOut("arguments of a tool call are not an object")
    named = {"type": "function", "function": {"name": function["name"], "arguments": arguments or {}}}
    return named if call.get("id") is None else {"id": as_text(call["id"], "id of a tool call"), **named}


def _ignore(_: str) -> None:
    pass
