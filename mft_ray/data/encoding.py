"""Examples as tokens, with labels on the answers only."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypedDict

from transformers import PreTrainedTokenizerBase

from mft_ray.data.chat import Chat, Refused, without_system
from mft_ray.data.examples import Example, Message
from mft_ray.data.tokens import continued_tokens, prompt_tokens, rendered_tokens
from mft_ray.data.turns import Answer, LeftOut, chat_answers, plain_answers
from mft_ray.errors import UserError

IGNORED = -100  # a label that the loss skips
System = Literal["auto", "fold", "drop", "refuse"]
TooLong = Literal["leave_out", "cut"]

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


@dataclass
class Encoding:
    """What became of examples.

    Attributes:
        rows: what is learned, or judged by.
        examples: given.
        left_out: texts that give no row, by the reason.
        split: examples that became several rows, since their template writes an answer otherwise later on.
        parts: texts that these gave.
        shortened: rows that end before an answer that does not fit.
        cut: rows whose last answer is cut.
        system: examples whose system message the template does not take, by what was done with it.
        reasoned: answers whose reasoning the template does not write.
        shortest: tokens of the shortest prompt that has no answer in its row.
        refusal: why the template did not take the first example that it did not take, which is named.
    """

    rows: list[Row] = field(default_factory=list)
    examples: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    split: int = 0
    parts: int = 0
    shortened: int = 0
    cut: int = 0
    system: Counter[str] = field(default_factory=Counter)
    reasoned: int = 0
    shortest: int | None = None
    refusal: str | None = None

    @property
    def tokens(self) -> int:
        """All tokens of all rows."""
        return sum(len(row["input_ids"]) for row in self.rows)

    @property
    def answer_tokens(self) -> int:
        """Those with a label."""
        return sum(label != IGNORED for row in self.rows for label in row["labels"])

    def remarks(self) -> Iterator[str]:
        """Yield what was left out, cut or changed, and how often."""
        for reason, count in self.left_out.items():
            yield f"{count:,} of {self.examples:,} examples left out: {reason}"
        if self.refusal is not None:
            yield f"the first that the chat template does not take: {self.refusal}"
        if self.split:
            yield (
                f"{self.split:,} conversations became {self.parts:,} rows, since the chat template writes an answer "
                "otherwise once the conversation goes on"
            )
        if self.shortened:
            yield f"{self.shortened:,} rows end before an answer that does not fit data.max_length"
        if self.cut:
            yield f"{self.cut:,} rows have an answer that data.max_length cuts: they teach no end of it"
        for done, count in self.system.items():
            yield f"{count:,} system messages {done}"
        if self.reasoned:
            yield f"{self.reasoned:,} answers have reasoning that the chat template does not write: it is not learned"


def encode(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    split: str = "The data",
    *,
    system: System = "auto",
    too_long: TooLong = "leave_out",
) -> list[Row]:
    """Return the rows of `encode_all`, whose remarks go to the log. Arguments as of that."""
    encoding = encode_all(examples, tokenizer, max_length, split, system=system, too_long=too_long)
    for remark in encoding.remarks():
        logger.warning("%s: %s", split, remark)
    return encoding.rows


def encode_all(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    split: str = "The data",
    *,
    system: System = "auto",
    too_long: TooLong = "leave_out",
) -> Encoding:
    """Turn examples into tokens and labels.

    With a chat template every assistant turn is labelled, after what the template prompts with and through the token
    that ends a turn in this template; the end-of-sequence token where it writes none. A conversation in which it
    writes an answer otherwise once more follows becomes a row for each answer. Without a template the messages are
    joined by the example's separator, and the last answer and the end-of-sequence token are labelled. Turns of
    ``weight`` 0 have no labels. Examples that give no row are counted by the reason.

    Args:
        examples: what to encode.
        tokenizer: of the model; needs an end-of-sequence token.
        max_length: tokens that a row may have.
        split: what the examples are called in messages.
        system: what to do with system messages: ``fold`` puts them before the next user's turn, ``drop`` leaves them
            out, ``auto`` folds them where the template does not take them, ``refuse`` leaves such examples out.
        too_long: ``leave_out`` ends a row before the first answer that does not fit, ``cut`` within it.

    Raises:
        UserError: no example gives a row, or there is no end-of-sequence token.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            "The tokenizer has no end-of-sequence token, so a model could not learn where an answer ends. "
            "Set eos_token in the tokenizer's tokenizer_config.json."
        )
    encoder = _Encoder(tokenizer, max_length, system, too_long)
    for example in examples:
        encoder.add(example)
    found = encoder.encoding
    if examples and not found.rows:
        raise UserError(_nothing_left(found, split, max_length))
    return found


class _Encoder:
    """Encodes examples one by one. Arguments as of `encode_all`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, system: System, too_long: TooLong) -> None:
        self._tokenizer, self._max_length = tokenizer, max_length
        self._system, self._too_long = system, too_long
        self._chat = Chat(tokenizer) if tokenizer.chat_template else None
        self.encoding = Encoding()

    def add(self, example: Example) -> None:
        """Encode an example."""
        self.encoding.examples += 1
        try:
            texts = self._chat_answers(self._chat, example) if self._chat else [plain_answers(example)]
        except LeftOut as reason:
            self.encoding.left_out[str(reason)] += 1
            return
        except Refused as refused:
            self.encoding.left_out["the chat template does not take them"] += 1
            roles = ", ".join(message["role"] for message in example.messages)
            self.encoding.refusal = self.encoding.refusal or f"example {example.id} (roles {roles}): {refused}"
            return
        if len(texts) > 1:
            self.encoding.split, self.encoding.parts = self.encoding.split + 1, self.encoding.parts + len(texts)
        for number, answers in enumerate(texts, start=1):
            self._add_row(example, f"{example.id}#{number}" if len(texts) > 1 else example.id, answers)

    def _chat_answers(self, chat: Chat, example: Example) -> list[list[Answer]]:
        messages: Sequence[Message] = example.messages
        if any(message["role"] == "system" for message in messages):
            return self._with_system(chat, example)
        return self._counted(chat_answers(chat, messages, example))

    def _with_system(self, chat: Chat, example: Example) -> list[list[Answer]]:
        """Treat system messages as the setting says."""
        if self._system in ("auto", "refuse"):
            left_out = chat.takes_system
            try:
                if left_out is None:
                    return self._counted(chat_answers(chat, example.messages, example))
                if self._system == "refuse":
                    raise Refused(f"it has a system message, and the template {left_out}; data.system can fold it")
            except Refused:
                if self._system == "refuse":
                    raise
        fold = self._system != "drop"
        found = self._counted(chat_answers(chat, without_system(example.messages, fold), example))
        self.encoding.system["were put before the user's words" if fold else "were dropped"] += 1
        return found

    def _counted(self, texts: list[list[Answer]]) -> list[list[Answer]]:
        self.encoding.reasoned += sum(answer.reasoned for answers in texts for answer in answers)
        return texts

    def _add_row(self, example: Example, name: str, answers: Sequence[Answer]) -> None:
        """Encode answers that one text has, as many as fit."""
        encode_text = prompt_tokens if self._chat is None else rendered_tokens
        eos: int = self._tokenizer.eos_token_id
        tokens: list[int] = []
        labels: list[int] = []
        row: Row | None = None
        text, cut, ended = "", False, True
        for answer in answers:
            before = continued_tokens(self._tokenizer, tokens, text, answer.prompt, encode_text)
            through = continued_tokens(self._tokenizer, before, answer.prompt, answer.whole, encode_text)
            length = len(through) + (not answer.ended)
            if length > self._max_length and (self._too_long == "leave_out" or len(before) >= self._max_length):
                cut = True
                self._note_shortest(row, len(before))
                break
            labels += [IGNORED] * (len(before) - len(labels)) + through[len(before) :]
            tokens, text, ended = through, answer.whole, answer.ended
            said = answer.text
            if said is None:
                said = self._tokenizer.decode(through[len(before) : -1], skip_special_tokens=True)
            row = _row(example, name, before, said)
        if row is None:
            self.encoding.left_out[f"no answer fits data.max_length {self._max_length}"] += 1
            return
        if not ended:
            tokens, labels = [*tokens, eos], [*labels, eos]
        self.encoding.shortened += cut
        self.encoding.cut += len(tokens) > self._max_length
        row["input_ids"], row["labels"] = tokens[: self._max_length], labels[: self._max_length]
        self.encoding.rows.append(row)

    def _note_shortest(self, row: Row | None, length: int) -> None:
        if row is None:
            known = self.encoding.shortest
            self.encoding.shortest = length if known is None else min(known, length)


def _row(example: Example, name: str, prompt_ids: list[int], answer: str) -> Row:
    return {
        "id": name,
        "input_ids": [],
        "labels": [],
        "prompt_ids": prompt_ids,
        "answer": answer,
        "source": example.origin,
    }


def _nothing_left(found: Encoding, split: str, max_length: int) -> str:
    """Say why no example gives a row, and what to do about what most of them have."""
    reason, count = found.left_out.most_common(1)[0]
    if found.shortest is not None and reason.startswith("no answer fits"):
        return (
            f"{split} has no answer tokens after truncation: data.max_length is {max_length}, and the "
            f"shortest of the {found.examples:,} prompts already takes {found.shortest} tokens. Raise "
            f"data.max_length to more than {found.shortest} and the length of an answer, or give shorter examples."
        )
    if found.refusal is not None and reason.startswith("the chat template does not take"):
        return (
            f"The tokenizer's chat template cannot be used: it does not take {found.refusal}. Give conversations that "
            "it takes, or another template: data.chat_template, such as tulu or a Jinja file that writes turns one "
            "after another."
        )
    return f"{split} has nothing to learn from: {count:,} of {found.examples:,} examples are left out, since {reason}."
