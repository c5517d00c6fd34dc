"""Message trees, one message a row, as OpenAssistant publishes them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mft_ray.data.examples import Message
from mft_ray.data.rows.formats import Conversation, Row
from mft_ray.data.rows.messages import role_of
from mft_ray.data.rows.values import LeftOut, as_text
from mft_ray.domains import TREE
from mft_ray.errors import UserError


@dataclass(frozen=True)
class Node:
    """One message of a tree.

    Attributes:
        index: index of its row.
        name: its ``message_id``.
        parent: what it replies to; None for the first message of a tree.
        message: what it says; its content is None where it says nothing.
        quality: quality of ``labels``; 0 where nothing is said.
        deleted: whether it was taken back.
    """

    index: int
    name: str
    parent: str | None
    message: Message
    quality: float
    deleted: bool


@dataclass(frozen=True)
class Path:
    """The best path of a tree.

    Attributes:
        indices: rows of its messages.
        messages: the conversation.
        reason: why it cannot be used; None if it can.
    """

    indices: tuple[int, ...]
    messages: Conversation
    reason: str | None


def node(row: Row, index: int, where: str) -> Node:
    """Read a message of a tree.

    Args:
        row: with the columns of `TREE`, and perhaps ``labels`` and ``deleted``.
        index: index of the row.
        where: file and line, for errors.

    Raises:
        LeftOut: it is no message.
        UserError: its role is unknown.
    """
    for column in TREE:
        if column not in row:
            raise LeftOut(f"it has no column {column}")
    parent = None if row["parent_id"] is None else as_text(row["parent_id"], "parent_id")
    text = None if row["text"] is None else as_text(row["text"], "text", empty=True)
    role = role_of({"role": row["role"]}, where)
    if role not in ("user", "assistant"):
        raise UserError(
            f"{where} has a message of the role {str(row['role'])[:40]!r}. The roles of message trees are prompter and "
            "assistant."
        )
    message: Message = {"role": role, "content": text}
    name = as_text(row["message_id"], "message_id")
    return Node(index, name, parent, message, _quality(row.get("labels")), row.get("deleted") in (True, "1"))


def paths(nodes: Sequence[Node]) -> Iterator[Path]:
    """Yield one conversation a tree, as open-instruct converts them: from the root along the best replies.

    The best is the undeleted one of the highest ``labels.quality``, the first of equals.
    """
    replies: dict[str, list[Node]] = {}
    for one in nodes:
        if one.parent is not None:
            replies.setdefault(one.parent, []).append(one)
    for root in nodes:
        if root.parent is None:
            yield _best(root, replies)


def _best(root: Node, replies: dict[str, list[Node]]) -> Path:
    path: list[Node] = []
    at: Node | None = None if root.deleted else root
    while at is not None:
        path.append(at)
        # Taken out, so that two messages of one id cannot lead in a circle.
        offered = [reply for reply in replies.pop(at.name, []) if not reply.deleted]
        at = max(offered, key=lambda reply: reply.quality, default=None)
    messages = tuple(one.message for one in path)
    return Path(tuple(one.index for one in path) or (root.index,), messages, _reason(messages))


def _reason(messages: Conversation) -> str | None:
    if not messages:
        return "the first message of its tree is deleted"
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        return "its tree does not end with an answer"
    if not all((message["content"] or "").strip() for message in messages):
        return "a message of its tree is empty"
    return None


def _quality(labels: Any) -> float:
    if not isinstance(labels, dict):
        return 0.0
    names, values = labels.get("name"), labels.get("value")
    if not isinstance(names, list) or not isinstance(values, list):
        return 0.0
    for name, value in zip(names, values, strict=False):
        if name == "quality":
            try:
                found = float(value)
            except (TypeError, ValueError):
                return 0.0
            return found if math.isfinite(found) else 0.0
    return 0.0
