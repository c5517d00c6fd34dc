"""The forms in which rows hold conversations, known by their columns."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mft_ray.data.examples import Message
from mft_ray.data.rows.messages import CALLS, Note, check_not_empty, is_learned, message, role_of, tools
from mft_ray.data.rows.values import LeftOut, Number, as_text, loads
from mft_ray.domains import TREE
from mft_ray.errors import UserError
from mft_ray.utils.json_types import JsonObject

Row = Mapping[str, Any]
Conversation = tuple[Message, ...]

# What rows are taken for where no column is named: the first form whose columns they all have.
WHOLE: tuple[tuple[str, ...], ...] = (("messages",), ("conversations",), ("conversation",))
FORMS: tuple[tuple[str, ...], ...] = (
    *WHOLE,
    TREE,
    ("prompt", "response"),
    ("prompt", "completion"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("query", "response"),
    ("query", "answer"),
    ("question", "answer"),
    ("question", "response"),
    ("problem", "solution"),
    ("inputs", "targets"),
)
# What may stand beside a form and belongs to its prompt.
SYSTEM = ("system", "system_prompt", "system_message")
HISTORY = ("history",)
CONTEXT = ("input", "context")  # what an instruction or a question is about
TOOLS = ("tools", "functions")
BESIDE = (*SYSTEM, *HISTORY, *CONTEXT, *TOOLS)
# Columns that are part of conversations elsewhere: told by name where they are not used.
CONVERSATIONAL = frozenset(
    {column for form in FORMS if form != TREE for column in form}
    | {*BESIDE, "chosen", "rejected", "documents", "images", "image", "audio", "video", "dialog", "dialogue", "turns"}
    | {"reasoning", "thinking", "reasoning_content", "function_call", "tool_calls", "user", "assistant", "passage"}
)
_MOST_SHOWN = 20  # columns in a message


@dataclass(frozen=True)
class Read:
    """What a row holds.

    Attributes:
        messages: the conversation, through its last answer that is to be learned.
        tools: JSON schemas of the tools that the assistant may call.
    """

    messages: Conversation
    tools: list[JsonObject] | None


def find_columns(present: Sequence[str], where: str, advice: str) -> tuple[str, ...]:
    """Return the columns of the first known form that rows with these columns have.

    Raises:
        UserError: naming the columns that there are and the forms that are known.
    """
    if (columns := known_form(present)) is not None:
        return columns
    known = "; ".join(", ".join(columns) for columns in FORMS)
    raise UserError(f"{where} has the columns {shown(present)}, which are no form that is known ({known}). {advice}")


def known_form(present: Collection[str], forms: Sequence[tuple[str, ...]] = FORMS) -> tuple[str, ...] | None:
    """Return the columns of the first of some forms among these columns, if there is one."""
    return next((columns for columns in forms if all(column in present for column in columns)), None)


def shown(columns: Sequence[str]) -> str:
    """Return columns for a message, whatever their names are made of."""
    names = [column.encode("utf-8", "replace").decode()[:60] for column in columns[:_MOST_SHOWN]]
    more = f", ... ({len(columns):,} in all)" if len(columns) > _MOST_SHOWN else ""
    return ", ".join(names) + more if names else "(none)"


def beside(columns: tuple[str, ...], present: Collection[str]) -> tuple[str, ...]:
    """Return the columns besides a form's own that belong to the prompt.

    Args:
        columns: columns of the form.
        present: those of a row that may be used.
    """
    if columns == TREE:
        return ()
    found = [first for names in (SYSTEM, HISTORY, TOOLS) if (first := _first(names, columns, present))]
    if len(columns) == 2:
        # An input is an instruction's; a context also a question's.
        about = CONTEXT if columns[0] == "instruction" else CONTEXT[1:]
        found += [name for name in about if name in present and name not in columns]
    return tuple(found)


def _first(names: Sequence[str], columns: tuple[str, ...], present: Collection[str]) -> str | None:
    return next((name for name in names if name in present and name not in columns), None)


def conversation(row: Row, columns: tuple[str, ...], extra: Collection[str], where: str, note: Note) -> Read:
    """Read a row as a conversation that ends with an answer to be learned.

    Args:
        row: row of a file.
        columns: one of a conversation, or two of a prompt and its answer.
        extra: columns of `beside` that the row has.
        where: file and line, for errors.
        note: told what is read otherwise than it stands there.

    Raises:
        LeftOut: the row has no prompt or no answer that can be used.
        UserError: a role is unknown, or a weight neither 0 nor 1.
    """
    for column in columns:
        if column not in row:
            raise LeftOut(f"it has no column {shown([column])}")
    beside_it = {name: row[name] for name in extra if name in row}
    if len(columns) == 2:
        turns = _pair(row, *columns, beside_it, where, note)
    else:
        turns = _turns(row[columns[0]], columns[0], where, note)
    turns = _opening(beside_it, turns, where, note) + turns
    if len(turns) < 2:
        raise LeftOut("nothing stands before its answer")
    for turn in turns:
        check_not_empty(turn)
    given = next((beside_it[name] for name in TOOLS if name in beside_it), None)
    return Read(tuple(turns), tools(given))


def _pair(row: Row, prompt: str, answer: str, beside_it: Row, where: str, note: Note) -> list[Message]:
    """A prompt and its answer, each of which may be a list of messages as in TRL's files."""
    if _is_messages(row[answer]):
        answered = _turns(row[answer], answer, where, note)
    else:
        answered = [{"role": "assistant", "content": as_text(row[answer], answer)}]
    if _is_messages(row[prompt]):
        return [*_context(_all(row[prompt], where, note)), *answered]
    about = {name: as_text(beside_it[name], name, empty=True) for name in CONTEXT if beside_it.get(name) is not None}
    # Alpaca's files keep what an instruction is about in a column of its own; a text is read before its question.
    after = [text for text in about.values() if text.strip()]
    asked = as_text(row[prompt], prompt, empty=bool(after))
    parts = [asked, *after] if prompt == "instruction" else [*after, asked]
    content = "\n\n".join(part for part in parts if part.strip())
    return [{"role": "user", "content": content}, *answered]


def _opening(beside_it: Row, turns: list[Message], where: str, note: Note) -> list[Message]:
    """The system message and the earlier turns that stand in columns of their own."""
    opening: list[Message] = []
    name = next((name for name in SYSTEM if beside_it.get(name) is not None), None)
    system = "" if name is None else as_text(beside_it[name], name, empty=True)
    if system.strip():
        if turns and turns[0]["role"] == "system":
            if turns[0]["content"] != system:
                raise LeftOut(f"its column {name} and its system message differ")
        else:
            opening.append({"role": "system", "content": system})
    history = next((beside_it[name] for name in HISTORY if name in beside_it), None)
    earlier = _history(history, where, note)
    if earlier and turns and turns[0]["role"] == "system":
        opening.append(turns.pop(0))
    return opening + earlier


def _history(given: Any, where: str, note: Note) -> list[Message]:
    """Earlier turns: pairs of a question and its answer, or messages. They are context, of which nothing is learned."""
    given = _listed(given)
    if not given:
        return []
    if _is_messages(given):
        return _context(_all(given, where, note))
    if not isinstance(given, list) or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in given):
        raise LeftOut("history is neither a list of pairs (question, answer) nor a list of messages")
    turns: list[Message] = []
    for asked, answered in given:
        turns.append({"role": "user", "content": as_text(asked, "a question of history")})
        turns.append({"role": "assistant", "content": as_text(answered, "an answer of history")})
    return _context(turns)


def _context(turns: list[Message]) -> list[Message]:
    for turn in turns:
        if turn["role"] == "assistant":
            turn["weight"] = 0
    return turns


def _turns(given: Any, column: str, where: str, note: Note) -> list[Message]:
    """The messages up to the last answer that is to be learned."""
    given = _listed(given)
    if given is None:
        raise LeftOut(f"{column} is null")
    if not isinstance(given, list) or not all(isinstance(one, Mapping) for one in given):
        raise LeftOut(f"{column} is not a list of messages, each an object with role and content")
    roles = [role_of(one, where) for one in given]
    answers = [index for index, role in enumerate(roles) if role == "assistant" or role in CALLS]
    learned = [index for index in answers if is_learned(given[index], where)]
    if not learned:
        raise LeftOut("no answer is to be learned (weight 0)" if answers else f"{column} has no answer of an assistant")
    if learned[-1] + 1 < len(given):
        note("what follows the last answer is not used")
    return _all(given[: learned[-1] + 1], where, note)


def _all(given: Sequence[Mapping[str, Any]], where: str, note: Note) -> list[Message]:
    return [found for one in _listed(given) if (found := message(one, where, note)) is not None]


def _listed(given: Any) -> Any:
    """A list that stands in a file as JSON text, as CSV must have it, is that list."""
    if isinstance(given, str) and not isinstance(given, Number) and given.lstrip()[:1] == "[":
        try:
            return loads(given)
        except ValueError:
            return given
    return given


def _is_messages(given: Any) -> bool:
    return isinstance(given, list) and bool(given) and all(isinstance(one, Mapping) for one in given)
