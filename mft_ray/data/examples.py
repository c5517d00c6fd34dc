"""One example: a conversation that ends with the answer to be learnt."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass
from typing import Required, TypedDict

from mft_ray.utils.json_types import JsonObject


class Message(TypedDict, total=False):
    """One turn of a conversation, as chat templates take it; keys that a row does not give are absent.

    Attributes:
        role: system, user, assistant or tool.
        content: its text; None where an assistant message is tool calls and nothing else.
        tool_calls: tool calls of an assistant message, as transformers hands them to templates; arguments are objects.
        tool_call_id: identifier of a tool's message, the call that it answers.
        name: name of the tool or person that speaks.
        reasoning_content: what the assistant thought before it answered.
        weight: 0 on an assistant message that is context only and never learned; absent otherwise.
    """

    role: Required[str]
    content: Required[str | None]
    tool_calls: list[JsonObject]
    tool_call_id: str
    name: str
    reasoning_content: str
    weight: int


@dataclass(frozen=True)
class Example:
    """A conversation whose last message is the assistant's answer.

    Attributes:
        id: where the example comes from, unique within its data.
        messages: at least one message and then the assistant's answer.
        separator: what stands between messages when the tokenizer has no chat template.
        source: what it was made from, such as a document that several examples ask about; None if nothing is said.
        tools: JSON schemas of the tools that the assistant may call, as templates take them; None without tools.

    Raises:
        ValueError: there is nothing before the answer, or the last message is not the assistant's.
    """

    id: str
    messages: tuple[Message, ...]
    separator: str = "\n"
    source: str | None = None
    tools: list[JsonObject] | None = None

    def __post_init__(self) -> None:
        """Refuse a conversation that nothing can be learnt from."""
        if len(self.messages) < 2 or self.messages[-1]["role"] != "assistant":
            raise ValueError(f"example {self.id} needs a prompt and then an assistant's answer")

    @property
    def answer(self) -> str:
        """Text of the last assistant message; empty where that is tool calls and nothing else."""
        return self.messages[-1]["content"] or ""

    @property
    def origin(self) -> str:
        """What it was made from; an example of which nothing is said is its own."""
        return self.source or self.id

    @property
    def prompt_key(self) -> str:
        """The prompt without case, spacing and Unicode form: examples that share it ask the same."""
        turns = [_asked(message) for message in self.messages[:-1]]
        if self.tools:
            turns.append(json.dumps(self.tools, sort_keys=True))
        return " ".join(unicodedata.normalize("NFKC", "\n".join(turns)).casefold().split())


def _asked(message: Message) -> str:
    parts = [message["role"], message["content"] or ""]
    if "tool_calls" in message:
        parts.append(json.dumps(message["tool_calls"], sort_keys=True))
    return "\n".join(parts)
