"""A conversation as texts to learn from: for each answer what stands before it, and the text through its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mft_ray.data.examples import Example, Message
from mft_ray.data.text.chat import Chat, Refused
from mft_ray.data.text.thoughts import PAIRS, opened

NOT_LEARNED = "every answer has weight 0"
NO_CALLS = "the chat template does not write tool calls"
NO_TEMPLATE = "tool calls, and the tokenizer has no chat template"


class LeftOut(Exception):
    """An example that nothing can be learned from; the text says why, in words that many examples share."""


@dataclass(frozen=True)
class Answer:
    """One answer of a conversation.

    Attributes:
        prompt: text before it.
        whole: the same and the answer through its end.
        ended: whether that has the token that ends it; else the end-of-sequence token is to follow.
        text: what the assistant says; None where that is tool calls alone.
        reasoned: whether it was given with reasoning that the template does not write.
    """

    prompt: str
    whole: str
    ended: bool
    text: str | None
    reasoned: bool = False


def plain_answers(example: Example) -> list[Answer]:
    """Return the last answer that is to be learned, where there is no chat template: messages follow each other.

    Raises:
        LeftOut: there is none, or there are tool calls, which nothing would write.
    """
    turns = _learned(example)
    messages = example.messages[: turns[-1] + 1]
    if any("tool_calls" in message for message in messages):
        raise LeftOut(NO_TEMPLATE)
    prompt = "".join((message["content"] or "") + example.separator for message in messages[:-1])
    said = messages[-1]["content"] or ""
    return [Answer(prompt, prompt + said, False, said)]


def chat_answers(chat: Chat, messages: Sequence[Message], example: Example) -> list[list[Answer]]:
    """Return the answers that are to be learned, as a chat template writes them.

    Args:
        chat: the template.
        messages: messages of the example, as the template takes them.
        example: whose tools are used.

    Returns:
        The answers that one text has, for each text: several where the template writes an answer otherwise once the
        conversation has gone on.

    Raises:
        LeftOut: nothing is to be learned, or the template does not write calls.
        Refused: the template does not take the conversation.
    """
    texts: list[list[Answer]] = []
    for turn in _learned(example, messages):
        answer = _answer(chat, messages, turn, example)
        if texts and answer.prompt.startswith(texts[-1][-1].whole):
            texts[-1].append(answer)
        else:
            texts.append([answer])
    return texts


def _learned(example: Example, messages: Sequence[Message] | None = None) -> list[int]:
    """Return the places of the answers that are to be learned; one that nothing stands before is a prompt."""
    given = example.messages if messages is None else messages
    answers = [at for at, message in enumerate(given) if at and message["role"] == "assistant"]
    said = [at for at in answers if given[at]["content"] is not None or given[at].get("tool_calls")]
    learned = [at for at in said if given[at].get("weight", 1)]
    if not learned:
        raise LeftOut(NOT_LEARNED if said else "no answer")
    return learned


def _answer(chat: Chat, messages: Sequence[Message], turn: int, example: Example) -> Answer:
    before, message = messages[:turn], messages[turn]
    if any("tool_calls" in each for each in messages[: turn + 1]) and not chat.writes_calls:
        raise LeftOut(NO_CALLS)
    prompt = chat.render(before, example.tools, prompted=True)
    whole = chat.render(messages[: turn + 1], example.tools)
    if whole.startswith(prompt):
        cut = chat.cut(whole)
        text, ended = cut.text, cut.ended
    else:
        text, ended = _after(chat, messages, turn, example, prompt, whole)
    said = message["content"]
    thought = message.get("reasoning_content") or ""
    return Answer(prompt, text, ended, said, bool(thought.strip()) and thought.strip() not in text[len(prompt) :])


def _after(
    chat: Chat, messages: Sequence[Message], turn: int, example: Example, prompt: str, whole: str
) -> tuple[str, bool]:
    """Put an answer after what the template prompts with, where it writes something else before an answer.

    As templates of models that think: they prompt with the beginning of a thought, and leave thoughts out afterwards.
    """
    before, message = messages[:turn], messages[turn]
    left, right = chat.around(before, example.tools)
    if not left.startswith(chat.context(before, example.tools, prompt)):
        raise Refused(
            f"what it writes before message {turn}, an answer, changes once the answer follows, so a model would be "
            "asked otherwise than it was taught"
        )
    end = chat.cut("x" + right)
    said = whole[len(left) : len(whole) - len(right)] if whole.startswith(left) and whole.endswith(right) else None
    if said is None and message["content"] is None:
        raise Refused(f"it does not write message {turn}, a tool call, where it writes answers")
    said = (message["content"] or "").strip() if said is None else said
    return prompt + _thought(prompt, message, said) + end.text[1:], end.ended


def _thought(prompt: str, message: Message, written: str) -> str:
    """Return what the assistant says after a prompt, its thoughts included where the prompt begins one."""
    pair = opened(prompt)
    if pair is None:
        return written
    opener, closer = PAIRS[pair]
    said, thought = message["content"] or "", message.get("reasoning_content") or ""
    if thought.strip() and closer not in said:
        return f"{thought.strip()}\n{closer}\n\n{written}"
    if closer in said:
        said = said.strip()
        return said.removeprefix(opener).lstrip("\n") if said.startswith(opener) else said
    return written
