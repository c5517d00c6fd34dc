"""The forms in which rows hold conversations, known by their columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mft_ray.data.examples import Message
from mft_ray.domains import TREE
from mft_ray.errors import UserError

Row = Mapping[str, Any]
Conversation = tuple[Message, ...]

# What rows are taken for where no column is named: the first form whose columns they all have.
FORMS: tuple[tuple[str, ...], ...] = (
    ("messages",),
    ("conversations",),
    TREE,
    ("prompt", "response"),
    ("prompt", "completion"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("query", "response"),
    ("query", "answer"),
    ("question", "answer"),
    ("problem", "solution"),
    ("inputs", "targets"),
)
_ROLES = {"human": "user", "prompter": "user", "gpt": "assistant"}


def find_columns(present: Sequence[str], where: str, advice: str) -> tuple[str, ...]:
    """Return the columns of the first known form that rows with these columns have.

    Raises:
        UserError: naming the columns that there are and the forms that are known.
    """
    for columns in FORMS:
        if set(columns) <= set(present):
            return columns
    known = "; ".join(", ".join(columns) for columns in FORMS)
    raise UserError(
        f"{where} has the columns {', '.join(present)}, which are no form that is known ({known}). {advice}"
    )


def conversations(rows: Sequence[Row], columns: tuple[str, ...], where: str) -> Iterator[tuple[int, Conversation]]:
    """Read rows as conversations that end with an answer.

    Args:
        rows: all with the columns.
        columns: one of a conversation, two of a prompt and its answer, or a message tree's.
        where: what the rows are called in messages.

    Yields:
        The row in which a conversation begins, and its messages. Rows without a prompt or an answer give nothing.

    Raises:
        UserError: a row holds no conversation where it should.
    """
    if columns == TREE:
        yield from _trees(rows, where)
        return
    for index, row in enumerate(rows):
        if len(columns) == 2:
            messages = _pair(row, *columns)
        else:
            messages = _conversation(row[columns[0]], f"Row {index} of {where}")
            # As ShareGPT files do, and nvidia/Daring-Anteater.
            if messages and columns[0] == "conversations" and _text(row.get("system")):
                messages = ({"role": "system", "content": row["system"]}, *messages)
        if messages:
            yield index, messages


def _pair(row: Row, prompt_column: str, answer_column: str) -> Conversation:
    """A prompt and its answer, or nothing if either is empty."""
    prompt, answer = _text(row[prompt_column]), _text(row[answer_column])
    # Alpaca's files keep what an instruction is about in a column of its own.
    if prompt_column == "instruction" and _text(row.get("input")):
        prompt = f"{prompt}\n\n{row['input']}"
    if not prompt or not answer:
        return ()
    return ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer})


def _text(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if text.strip() else ""


def _conversation(given: Any, where: str) -> Conversation:
    """The messages up to the last answer, or nothing if there is no answer or nothing before it."""
    if given is None:
        return ()
    if not isinstance(given, list) or not all(isinstance(message, Mapping) for message in given):
        raise UserError(
            f"{where} holds {str(given)[:80]!r} where a list of messages belongs. Each message is an object "
            "with role and content; for plain text columns set data.prompt_column and data.answer_column."
        )
    messages: list[Message] = []
    for message in given:
        names = ("from", "value") if "from" in message and "role" not in message else ("role", "content")
        role, content = (message.get(name) for name in names)
        if not isinstance(role, str) or not isinstance(content, str | None) or names[1] not in message:
            raise UserError(
                f"{where} has the message {str(dict(message))[:80]!r}. Each message needs a role (system, "
                "user or assistant) and a content that is text, or from and value as in ShareGPT files."
            )
        messages.append({"role": _role(role) if names[0] == "from" else role, "content": content or ""})
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if len(messages) < 2 or not _text_of(messages[-1]):
        return ()
    return tuple(messages)


def _role(given: str) -> str:
    return _ROLES.get(given.lower(), given.lower())


def _trees(rows: Sequence[Row], where: str) -> Iterator[tuple[int, Conversation]]:
    """One conversation a tree, as open-instruct converts them: from the root along the best reply to each message.

    The best is the undeleted one of the highest ``labels.quality``, the first of equals. Trees whose best path does
    not end with an answer give nothing.
    """
    replies: dict[str, list[Row]] = {}
    for row in rows:
        if row["parent_id"] is not None:
            replies.setdefault(row["parent_id"], []).append(row)
    for index, root in enumerate(rows):
        if root["parent_id"] is None:
            messages = _best_path(root, replies, where)
            if len(messages) > 1 and messages[-1]["role"] == "assistant" and all(map(_text_of, messages)):
                yield index, messages


def _best_path(root: Row, replies: dict[str, list[Row]], where: str) -> Conversation:
    messages: list[Message] = []
    node: Row | None = None if root.get("deleted") else root
    while node is not None:
        if node["role"] not in ("prompter", "assistant"):
            raise UserError(
                f"{where} has a message of the role {node['role']!r}. The roles of message trees are prompter and "
                "assistant."
            )
        messages.append({"role": _role(node["role"]), "content": node["text"] or ""})
        # Taken out, so that two messages of one id cannot lead in a circle.
        offered = [reply for reply in replies.pop(node["message_id"], []) if not reply.get("deleted")]
        node = max(offered, key=_quality, default=None)
    return tuple(messages)


def _quality(message: Row) -> float:
    labels = message.get("labels") or {}
    values: dict[str, float] = dict(zip(labels.get("name") or [], labels.get("value") or [], strict=False))
    return values.get("quality", 0.0)


def _text_of(message: Message) -> str:
    return _text(message["content"])
