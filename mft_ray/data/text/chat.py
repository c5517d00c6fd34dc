"""A tokenizer's chat template at work: what it writes before and after an answer, and what it does not take."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from mft_ray.data.examples import Message
from mft_ray.utils.json_types import JsonObject

# Words that no template writes by itself, to find what it writes around an answer and whether it writes a call.
_QUESTION, _ANSWER, _SYSTEM = "mftquestion", "mftanswer", "mftsystem"
_CALL, _KEY, _VALUE = "mftcall", "mftkey", "mftvalue"
_TOOL = {
    "type": "function",
    "function": {
        "name": _CALL,
        "description": "a tool",
        "parameters": {"type": "object", "properties": {_KEY: {"type": "string"}}},
    },
}


class Refused(Exception):
    """A template does not take a conversation; the text says why."""


@dataclass(frozen=True)
class TurnEnd:
    """How an answer ends.

    Attributes:
        token: ends it, and stops generation.
        tail: all that the template writes after the last answer.
        through: of that, what stands up to and with the token; None where the template writes no such token, and the
            end-of-sequence token follows the answer.
    """

    token: int
    tail: str
    through: str | None


class Chat:
    """The chat template of a tokenizer.

    Args:
        tokenizer: has a chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def render(self, messages: Sequence[Message], tools: list[JsonObject] | None = None, prompted: bool = False) -> str:
        """Return a conversation as the template writes it.

        Args:
            messages: the turns.
            tools: JSON schemas of what the assistant may call.
            prompted: ask for the assistant's next turn.

        Raises:
            Refused: with the template's reason.
        """
        turns: list[JsonObject] = [{k: v for k, v in turn.items() if k != "weight"} for turn in messages]
        forms = [turns]
        if any("tool_calls" in turn for turn in turns):
            # Some templates take arguments as the object, and others as JSON text.
            forms.append([_with_text_arguments(turn) for turn in turns])
        reason = ""
        for form in forms:
            try:
                return self._rendered(form, tools, prompted)
            except Exception as error:  # a template is a program of someone else's
                reason = reason or (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Refused(reason)

    def _rendered(self, turns: list[JsonObject], tools: list[JsonObject] | None, prompted: bool) -> str:
        text = self._tokenizer.apply_chat_template(turns, tools=tools, tokenize=False, add_generation_prompt=prompted)
        return str(text)

    @cached_property
    def special(self) -> dict[str, int]:
        """Tokens that mark up rather than say something, by their text."""
        tokens = {
            token.content: number for number, token in self._tokenizer.added_tokens_decoder.items() if token.special
        }
        named = zip(self._tokenizer.all_special_tokens, self._tokenizer.all_special_ids, strict=True)
        return tokens | {token: number for token, number in named if token}

    @cached_property
    def end(self) -> TurnEnd:
        """How an answer ends in this template.

        Raises:
            Refused: the template takes no question and answer, or does not write the answer.
        """
        text = self.render([_user(), {"role": "assistant", "content": _ANSWER}])
        if _ANSWER not in text:
            raise Refused("it does not write what the assistant says")
        tail = text[text.rindex(_ANSWER) + len(_ANSWER) :]
        through = self._through_first(tail)
        if through is None:
            assert self._tokenizer.eos_token_id is not None
            return TurnEnd(self._tokenizer.eos_token_id, tail, None)
        return TurnEnd(self._id_at_end(through), tail, through)

    @cached_property
    def ends(self) -> frozenset[int]:
        """All tokens that this template ends a turn of the assistant with, after words or after a call."""
        found = set()
        with suppress(Refused):
            found.add(self.end.token)
        if self._call is not None:
            called = self.cut(self._call)
            found |= {self._id_at_end(called.text)} if called.ended else set()
        return frozenset(found)

    @cached_property
    def writes_calls(self) -> bool:
        """Whether the template writes the assistant's tool calls, name and arguments."""
        return self._call is not None

    @cached_property
    def _call(self) -> str | None:
        """A question and a call, as the template writes them; None where it does not write the call."""
        for tools in (None, [_TOOL]):  # some tokenizers have a template of their own for conversations with tools
            try:
                text = self.render([_user(), _call()], tools)
            except Refused:
                continue
            # Tools are described before the question.
            if all(word in text.rpartition(_QUESTION)[2] for word in (_CALL, _KEY, _VALUE)):
                return text
        return None

    @cached_property
    def takes_system(self) -> str | None:
        """None where the template writes a system message that comes first, else what it does instead."""
        try:
            text = self.render([{"role": "system", "content": _SYSTEM}, _user()], prompted=True)
        except Refused as refused:
            try:
                self.render([_user()], prompted=True)
            except Refused:
                return None  # it is something else that it does not take
            return f"refuses it ({refused})"
        return None if _SYSTEM in text else "leaves it out"

    def cut(self, text: str) -> Cut:
        """Cut a conversation, as the template writes it, where its last answer has ended."""
        try:
            end = self.end
        except Refused:
            end = None
        if end is not None and text.endswith(end.tail):
            said = text[: len(text) - len(end.tail)]
            if end.through is not None:
                return Cut(said + end.through, True)
            # Words that are no token, such as markup of another model's, are not learned: the end token follows.
            return Cut(said if end.tail.strip() else text, False)
        last = self._last_run(text)
        return Cut(text if last is None else last, last is not None)

    def around(self, messages: Sequence[Message], tools: list[JsonObject] | None) -> tuple[str, str]:
        """Return what the template writes before and after an answer that follows these messages.

        Raises:
            Refused: as of `render`, or the answer is not written.
        """
        text = self.render([*messages, {"role": "assistant", "content": _ANSWER}], tools)
        before, found, after = text.rpartition(_ANSWER)
        if not found:
            raise Refused("it does not write what the assistant says")
        return before, after

    def context(self, messages: Sequence[Message], tools: list[JsonObject] | None, prompt: str) -> str:
        """Return the part of a prompt that is the conversation so far, without what asks for an answer."""
        shown = self.render(messages, tools)
        shared = next((at for at, (one, other) in enumerate(zip(prompt, shown, strict=False)) if one != other), None)
        return prompt[: min(len(prompt), len(shown)) if shared is None else shared]

    def _through_first(self, tail: str) -> str | None:
        """Return a text up to and with its first special token, or else its first token of an added word."""
        added = {
            token.content: number
            for number, token in self._tokenizer.added_tokens_decoder.items()
            if not token.content.isspace()
        }
        for tokens in (self.special, added):
            places = [(tail.index(token), -len(token)) for token in tokens if token in tail]
            if places:
                start, length = min(places)
                return tail[: start - length]
        return None

    def _last_run(self, text: str) -> str | None:
        """Return a text up to and with the first of the special tokens that it ends with; None where it has none."""
        found = None
        rest = text.rstrip()
        while token := max((each for each in self.special if rest.endswith(each)), key=len, default=None):
            found, rest = rest, rest[: len(rest) - len(token)].rstrip()
        return found

    def _id_at_end(self, text: str) -> int:
        known = {token.content: number for number, token in self._tokenizer.added_tokens_decoder.items()}
        known |= self.special
        return int(known[max((token for token in known if text.endswith(token)), key=len)])


@dataclass(frozen=True)
class Cut:
    """A conversation up to the end of its last answer.

    Attributes:
        text: what the template wrote until there.
        ended: whether that has the token that ends the answer.
    """

    text: str
    ended: bool


def without_system(messages: Sequence[Message], fold: bool) -> tuple[Message, ...]:
    """Return a conversation that has no system message.

    Args:
        messages: the turns.
        fold: put what a system message says before the next user's turn; else it is dropped.
    """
    turns: list[Message] = []
    held: list[str] = []
    for message in messages:
        if message["role"] == "system":
            held.append(message["content"] or "")
        elif message["role"] == "user" and held and fold:
            turns.append({**message, "content": "\n\n".join([*held, message["content"] or ""])})
            held = []
        else:
            turns.append(message)
    return tuple(turns)


def _user() -> Message:
    return {"role": "user", "content": _QUESTION}


def _call() -> Message:
    function = {"name": _CALL, "arguments": {_KEY: _VALUE}}
    calls = [{"type": "function", "id": "mftcall00", "function": function}]  # some templates want nine letters
    return {"role": "assistant", "content": None, "tool_calls": calls}


def _with_text_arguments(turn: JsonObject) -> JsonObject:
    if "tool_calls" not in turn:
        return turn
    calls = []
    for call in turn["tool_calls"]:
        function = dict(call.get("function", {}))
        if not isinstance(function.get("arguments"), str):
            function["arguments"] = json.dumps(function.get("arguments"), ensure_ascii=False)
        calls.append({**call, "function": function})
    return {**turn, "tool_calls": calls}
