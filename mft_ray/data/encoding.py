"""Examples as tokens, with labels on the answers only."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from transformers import PreTrainedTokenizerBase

from mft_ray.data.accounting import SplitCounts
from mft_ray.data.examples import Example
from mft_ray.data.text.chat import Chat, Refused, without_system
from mft_ray.data.text.tokens import continued_tokens, prompt_tokens, rendered_tokens
from mft_ray.data.text.turns import Answer, LeftOut, chat_answers, plain_answers
from mft_ray.errors import UserError

IGNORED = -100  # a label that the loss skips
System = Literal["auto", "fold", "drop", "refuse"]
TooLong = Literal["leave_out", "cut"]

_REFUSED = "the chat template does not take it"
_TOO_LONG = "no answer fits data.max_length with its prompt"
_SPLIT = "it became a row for each answer, since the chat template writes an answer otherwise once more follows"
_FOLDED = "the system message, which the chat template does not take, is put before the user's words (data.system)"

logger = logging.getLogger(__name__)


class Row(TypedDict):
    """One encoded example, or a part of it.

    `labels` is as long as `input_ids` and -100 except on answer tokens. `prompt_ids` is what stands
    before the last answer, and `answer` that answer's text. `source` is the example's origin.
    """

    id: str
    input_ids: list[int]
    labels: list[int]
    prompt_ids: list[int]
    answer: str
    source: str


def encode(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    split: str = "The data",
    *,
    system: System = "auto",
    too_long: TooLong = "leave_out",
    counts: SplitCounts | None = None,
    log: Callable[[str], None] = logger.warning,
) -> list[Row]:
    """Turn examples into tokens and labels.

    With a chat template every assistant turn is labelled, after what the template prompts with and through the token
    that ends a turn in this template; the end-of-sequence token where it writes none. A conversation in which it
    writes an answer otherwise once more follows becomes a row for each answer. Without a template the messages are
    joined by the example's separator, and the last answer and the end-of-sequence token are labelled. Turns of
    ``weight`` 0 have no labels.

    Args:
        examples: what to encode.
        tokenizer: tokenizer of the model; needs an end-of-sequence token.
        max_length: tokens that a row may have.
        split: what the examples are called in messages.
        system: what to do with system messages: ``fold`` puts them before the next user's turn, ``drop`` leaves them
            out, ``auto`` folds them where the template does not take them, ``refuse`` leaves such examples out.
        too_long: ``leave_out`` ends a row before the first answer that does not fit, ``cut`` within it.
        counts: what became of each example, which is filled.
        say: told what was left out, cut or changed, and why.

    Raises:
        UserError: no example gives a row, or there is no end-of-sequence token.
    """
    counts = SplitCounts() if counts is None else counts
    encoder = Encoder(How(tokenizer, max_length, system, too_long), counts)
    rows = [row for example in examples for row in encoder.rows(example)]
    told(counts, len(examples), max_length, split, log)
    return rows


def told(counts: SplitCounts, examples: int, max_length: int, split: str, log: Callable[[str], None]) -> None:
    """Say what was left out, cut or changed, once all examples are encoded. Arguments as of `encode`.

    Raises:
        UserError: no example gives a row.
    """
    if examples and not counts.rows:
        raise UserError(_nothing_left(counts, examples, max_length, split))
    if counts.left_out.reasons:
        log(f"{split}: {counts.left_out.rows:,} of {examples:,} examples left out: {counts.left_out.described()}")
    if counts.altered.reasons:
        log(f"{split}: examples that are not used as they stand there: {counts.altered.described()}")


@dataclass(frozen=True)
class How:
    """How examples are encoded; attributes are arguments of `encode`.

    Raises:
        UserError: the tokenizer has no end-of-sequence token.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    system: System = "auto"
    too_long: TooLong = "leave_out"

    def __post_init__(self) -> None:
        """Refuse a tokenizer that ends nothing."""
        if self.tokenizer.eos_token_id is None:
            raise UserError(
                "The tokenizer has no end-of-sequence token, so a model could not learn where an answer ends. "
                "Set eos_token in the tokenizer's tokenizer_config.json."
            )


class Encoder:
    """Encodes examples one by one.

    Args:
        how: how they are encoded.
        counts: what becomes of each, which is filled.
    """

    def __init__(self, how: How, counts: SplitCounts) -> None:
        self._tokenizer, self._max_length = how.tokenizer, how.max_length
        self._system, self._too_long, self._counts = how.system, how.too_long, counts
        self._chat = Chat(how.tokenizer) if how.tokenizer.chat_template else None

    def rows(self, example: Example) -> list[Row]:
        """Encode an example, and count what became of it."""
        try:
            texts = self._chat_answers(self._chat, example) if self._chat else [plain_answers(example)]
        except LeftOut as reason:
            self._counts.leave_out(str(reason), example.id)
            return []
        except Refused as refused:
            self._counts.leave_out(f"{_REFUSED} ({refused})", example.id)
            roles = ", ".join(message["role"] for message in example.messages)
            self._counts.refusal = self._counts.refusal or f"example {example.id} (roles {roles}): {refused}"
            return []
        rows = []
        for number, answers in enumerate(texts, start=1):
            row = self._row(example, answers)
            if row is not None:
                rows.append(row if len(texts) == 1 else {**row, "id": f"{row['id']}#{number}"})
        if not rows:
            self._counts.leave_out(_TOO_LONG, example.id)
            return []
        self._counts.used += 1
        self._counts.rows += len(rows)
        self._counts.tokens += sum(len(row["input_ids"]) for row in rows)
        self._counts.answer_tokens += sum(label != IGNORED for row in rows for label in row["labels"])
        if len(texts) > 1:
            self._counts.alter(_SPLIT, example.id)
        return rows

    def _chat_answers(self, chat: Chat, example: Example) -> list[list[Answer]]:
        if any(message["role"] == "system" for message in example.messages):
            texts = self._with_system(chat, example)
        else:
            texts = chat_answers(chat, example.messages, example)
        if any(answer.reasoned for answers in texts for answer in answers):
            self._counts.alter("reasoning that the chat template does not write is not learned", example.id)
        return texts

    def _with_system(self, chat: Chat, example: Example) -> list[list[Answer]]:
        """Treat system messages as the setting says."""
        if self._system in ("auto", "refuse"):
            instead = chat.takes_system
            if self._system == "refuse" and instead is not None:
                raise Refused(f"it has a system message, and the template {instead}; data.system: fold would keep it")
            if instead is None:
                try:
                    return chat_answers(chat, example.messages, example)
                except Refused:  # perhaps for where the message stands
                    if self._system == "refuse":
                        raise
        fold = self._system != "drop"
        texts = chat_answers(chat, without_system(example.messages, fold), example)
        self._counts.alter(_FOLDED if fold else "the system message is dropped (data.system)", example.id)
        return texts

    def _row(self, example: Example, answers: Sequence[Answer]) -> Row | None:
        """Encode answers that one text has, as many as fit; None if none does."""
        encode_text = prompt_tokens if self._chat is None else rendered_tokens
        tokens: list[int] = []
        labels: list[int] = []
        row: Row | None = None
        text, ended = "", True
        for answer in answers:
            before = continued_tokens(self._tokenizer, tokens, text, answer.prompt, encode_text)
            through = continued_tokens(self._tokenizer, before, answer.prompt, answer.whole, encode_text)
            too_long = len(through) + (not answer.ended) > self._max_length
            if too_long and (self._too_long == "leave_out" or len(before) >= self._max_length):
                self._count_unfit(example, row, len(before))
                break
            labels += [IGNORED] * (len(before) - len(labels)) + through[len(before) :]
            tokens, text, ended = through, answer.whole, answer.ended
            said = answer.text
            if said is None:
                said = self._tokenizer.decode(through[len(before) : -1], skip_special_tokens=True)
            row = _row(example, before, said)
        if row is None:
            return None
        if not ended:
            tokens, labels = [*tokens, self._tokenizer.eos_token_id], [*labels, self._tokenizer.eos_token_id]
        if len(tokens) > self._max_length:
            self._counts.cut += 1
            self._counts.alter("an answer is cut at data.max_length, and teaches that it ends nowhere", example.id)
        row["input_ids"], row["labels"] = tokens[: self._max_length], labels[: self._max_length]
        return row

    def _count_unfit(self, example: Example, row: Row | None, prompt_length: int) -> None:
        """Count an answer that does not fit: its row ends with the answer before it, if there is one."""
        if row is not None:
            self._counts.cut += 1
            self._counts.alter("it ends before an answer that does not fit data.max_length", example.id)
        else:
            self._counts.shortest = min(prompt_length, self._counts.shortest or prompt_length)


def _nothing_left(counts: SplitCounts, examples: int, max_length: int, split: str) -> str:
    """Say why no example gives a row, and what to do about what most of them have."""
    reasons = counts.left_out.reasons
    reason = max(reasons, key=lambda each: reasons[each].rows)
    if reason == _TOO_LONG:
        return (
            f"{split} has no answer tokens after truncation: data.max_length is {max_length}, and the "
            f"shortest of the {examples:,} prompts already takes {counts.shortest} tokens. Raise data.max_length to "
            f"more than {counts.shortest} and the length of an answer, or give shorter examples."
        )
    if reason.startswith(_REFUSED):
        return (
            f"The tokenizer's chat template cannot be used: it does not take {counts.refusal}. Give conversations "
            "that it takes, or another template: data.chat_template, such as tulu or a Jinja file that writes "
            "turns one after another."
        )
    why = counts.left_out.described()
    return f"{split} has nothing to learn from: all of its {examples:,} examples are left out: {why}."


def _row(example: Example, prompt_ids: list[int], answer: str) -> Row:
    return {
        "id": example.id,
        "input_ids": [],
        "labels": [],
        "prompt_ids": prompt_ids,
        "answer": answer,
        "source": example.origin,
    }
