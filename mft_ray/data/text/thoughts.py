"""Models that think before they answer: where a thought begins and ends in what they write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

PAIRS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("[THINK]", "[/THINK]"),
)
_MARK_TOKENS = 24  # that a mark and white space around it have at most


def opened(prompt: str) -> int | None:
    """Return which of `PAIRS` a prompt ends with the beginning of; None where the answer follows."""
    end = prompt.rstrip()
    return next((number for number, (opener, _) in enumerate(PAIRS) if end.endswith(opener)), None)


def open_at_end(tokenizer: Any, tokens: Sequence[int]) -> bool:
    """Return whether a prompt's tokens end with the beginning of a thought."""
    return opened(tokenizer.decode(tokens[-_MARK_TOKENS:], skip_special_tokens=False)) is not None


def known(tokenizer: Any) -> bool:
    """Return whether a tokenizer's chat template, or its vocabulary, has marks of thoughts."""
    text = str(tokenizer.chat_template or "")
    return any(closer in text or closer in tokenizer.added_tokens_encoder for _, closer in PAIRS)


def opens(text: str, thinks: bool = True) -> bool | None:
    """Return whether a text begins with a thought; None while it is too short to tell.

    Args:
        text: from its beginning.
        thinks: whether white space may come first.
    """
    start = text.lstrip()
    if text and not start and not thinks:
        return False
    if any(start.startswith(opener) for opener, _ in PAIRS):
        return True
    return None if any(opener.startswith(start) for opener, _ in PAIRS) else False


def closed(text: str) -> bool:
    """Return whether a thought ends somewhere in a text."""
    return any(closer in text for _, closer in PAIRS)


def answer_in(text: str) -> str:
    """Return what a text says after its thoughts; the text as it is where it has none."""
    end = max((text.rindex(closer) + len(closer) for _, closer in PAIRS if closer in text), default=None)
    return text if end is None else text[end:].lstrip()


def split(tokenizer: Any, tokens: Sequence[int], open_prompt: bool, ended: bool) -> tuple[str, str]:
    """Return the thought and the answer in what a model generated.

    A thought that does not end, in a text that does not either, is followed by no answer. A text that came to its end
    is an answer all the same: not every model thinks where it could.

    Args:
        tokenizer: the model's.
        tokens: generated, without the token that ended them.
        open_prompt: whether the prompt ends within a thought.
        ended: whether the text came to an end.
    """
    text: str = tokenizer.decode(tokens, skip_special_tokens=True)
    raw: str = tokenizer.decode(tokens, skip_special_tokens=False)
    begun = open_prompt or opens(raw) is True
    if not closed(raw):
        return (text, "") if begun and not ended else ("", text)
    if not begun and not _closes_first(raw):
        return "", text  # an answer about such marks
    if closed(text):
        answer = answer_in(text)
        return text[: len(text) - len(answer)], answer
    # The marks are special tokens, which are not text.
    marks = {tokenizer.convert_tokens_to_ids(closer) for _, closer in PAIRS} & set(tokenizer.all_special_ids)
    at = max((place for place, token in enumerate(tokens) if token in marks), default=-1)
    thought, answer = (
        tokenizer.decode(part, skip_special_tokens=True) for part in (tokens[: max(at, 0)], tokens[at + 1 :])
    )
    return thought, answer.lstrip()


def _closes_first(raw: str) -> bool:
    """Return whether a thought ends in a text before one begins."""
    ends = min(raw.index(closer) for _, closer in PAIRS if closer in raw)
    begins = min((raw.index(opener) for opener, _ in PAIRS if opener in raw), default=len(raw))
    return ends < begins


class Answering:
    """Knows while a text is generated where its answer begins, since what ends an answer ends no thought.

    Args:
        tokenizer: the model's.
        open_prompt: whether the prompt ends within a thought.

    Attributes:
        begins: the token that the answer begins with; 0 until a thought has ended.
    """

    def __init__(self, tokenizer: Any, open_prompt: bool) -> None:
        self._tokenizer, self._thinks, self.begins = tokenizer, known(tokenizer), 0
        self._thinking: bool | None = open_prompt or None

    def at(self, tokens: Sequence[int]) -> bool:
        """Return whether the last of the tokens generated so far, of which one is new, is part of an answer."""
        if self._thinking is None:
            self._thinking = opens(self._tokenizer.decode(tokens, skip_special_tokens=False), self._thinks)
        elif self._thinking:
            window = self._tokenizer.decode(tokens[-_MARK_TOKENS:], skip_special_tokens=False)
            if closed(window):
                self._thinking, self.begins = False, len(tokens)
        return self._thinking is False and len(tokens) > self.begins
