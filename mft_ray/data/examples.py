"""One example: a conversation that ends with the answer to be learnt."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TypedDict


class Message(TypedDict):
    """One turn of a conversation, as chat templates take it."""

    role: str
    content: str


@dataclass(frozen=True)
class Example:
    """A conversation whose last message is the assistant's answer.

    Attributes:
        id: where the example comes from, unique within its data.
        messages: at least one message and then the assistant's answer.
        separator: what stands between messages when the tokenizer has no chat template.
        source: what it was made from, such as a document that several examples ask about; None if nothing is said.

    Raises:
        ValueError: there is nothing before the answer, or the last message is not the assistant's.
    """

    id: str
    messages: tuple[Message, ...]
    separator: str = "\n"
    source: str | None = None

    def __post_init__(self) -> None:
        """Refuse a conversation that nothing can be learnt from."""
        if len(self.messages) < 2 or self.messages[-1]["role"] != "assistant":
            raise ValueError(f"example {self.id} needs a prompt and then an assistant's answer")

    @property
    def answer(self) -> str:
        """The last assistant message."""
        return self.messages[-1]["content"]

    @property
    def origin(self) -> str:
        """What it was made from; an example of which nothing is said is its own."""
        return self.source or self.id

    @property
    def prompt_key(self) -> str:
        """The prompt without case, spacing and Unicode form: examples that share it ask the same."""
        turns = ("\n".join((message["role"], message["content"])) for message in self.messages[:-1])
        return " ".join(unicodedata.normalize("NFKC", "\n".join(turns)).casefold().split())
