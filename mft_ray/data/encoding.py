"""Examples as tokens, with labels on the answers only."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, TypedDict

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from mft_ray.data.examples import Example, Message
from mft_ray.errors import UserError

IGNORED = -100  # a label that the loss skips

logger = logging.getLogger(__name__)


class Row(TypedDict):
    """One encoded example.

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
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int, split: str = "The data"
) -> list[Row]:
    """Turn examples into tokens and labels, cut at `max_length`.

    With a chat template every assistant turn is labelled, through its end-of-sequence token. Without one
    the messages are joined by the example's separator and the last answer and its end-of-sequence token
    are labelled. Turns that begin past `max_length` are dropped: `prompt_ids` and `answer` then belong to
    the last answer that still begins within it. Examples with no answer token left are dropped.

    Args:
        examples: what to encode.
        tokenizer: of the model; needs an end-of-sequence token.
        max_length: tokens that are kept of each example.
        split: what the examples are called in messages.

    Raises:
        UserError: no example has an answer token left, the chat template refuses a conversation or
            changes the prompt once the answer follows, or there is no end-of-sequence token.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            "The tokenizer has no end-of-sequence token, so a model could not learn where an answer ends. "
            "Set eos_token in the tokenizer's tokenizer_config.json."
        )
    one = _with_template if tokenizer.chat_template else _without_template
    rows: list[Row] = []
    shortest: int | None = None
    for example in examples:
        row = one(example, tokenizer, max_length)
        if any(label != IGNORED for label in row["labels"]):
            rows.append(row)
        else:
            length = len(row["prompt_ids"])
            shortest = length if shortest is None else min(shortest, length)
    if shortest is not None and not rows:
        raise UserError(
            f"{split} has no answer tokens after truncation: data.max_length is {max_length}, and the "
            f"shortest of the {len(examples):,} prompts already takes {shortest} tokens. Raise "
            f"data.max_length to more than {shortest}, or give shorter examples."
        )
    if len(rows) < len(examples):
        dropped = len(examples) - len(rows)
        logger.warning(
            "%s: %d of %d examples have no answer within %d tokens: dropped",
            split,
            dropped,
            len(examples),
            max_length,
        )
    return rows


def _without_template(example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Row:
    contents = [message["content"] for message in example.messages[:-1]]
    prompt = "".join((content or "") + example.separator for content in contents)
    prompt_ids: list[int] = tokenizer(prompt).input_ids
    # Some tokenizers end every text; here the text goes on.
    if prompt_ids and prompt_ids[-1] == tokenizer.eos_token_id and not prompt.endswith(tokenizer.eos_token):
        prompt_ids = prompt_ids[:-1]
    answer_ids = [*tokenizer(example.answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    labels = [IGNORED] * len(prompt_ids) + answer_ids
    return {
        "id": example.id,
        "input_ids": (prompt_ids + answer_ids)[:max_length],
        "labels": labels[:max_length],
        "prompt_ids": prompt_ids,
        "answer": example.answer,
        "source": example.origin,
    }


def _with_template(example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Row:
    turns = [index for index, message in enumerate(example.messages) if message["role"] == "assistant" and index]
    eos_id: int = tokenizer.eos_token_id
    tokens: list[int] = []
    labels: list[int] = []
    prompt_ids: list[int] = []
    answer, text = example.answer, ""
    for turn in turns:
        before, text = _continued(tokens, text, example, tokenizer, turn, prompted=True)
        if labels and len(before) >= max_length:
            break
        through, text = _continued(before, text, example, tokenizer, turn + 1, prompted=False)
        # Templates write a newline after the end-of-sequence token, which a model that stops never gets to.
        end = max((at + 1 for at, token in enumerate(through) if token == eos_id), default=0)
        end = end if end > len(before) else len(through)
        labels += [IGNORED] * (len(before) - len(labels)) + through[len(before) : end]
        tokens, prompt_ids, answer = through, before, example.messages[turn]["content"] or ""
    tokens = tokens[: len(labels)]
    if labels[-1] != eos_id:
        tokens, labels = [*tokens, eos_id], [*labels, eos_id]
    return {
        "id": example.id,
        "input_ids": tokens[:max_length],
        "labels": labels[:max_length],
        "prompt_ids": prompt_ids,
        "answer": answer,
        "source": example.origin,
    }


def _continued(
    tokens: list[int], text: str, example: Example, tokenizer: PreTrainedTokenizerBase, upto: int, prompted: bool
) -> tuple[list[int], str]:
    """Return the conversation up to a message, as tokens that begin with the given ones and as text."""
    whole: str = _apply(example, tokenizer, upto, prompted, tokenize=False)
    found: list[int] = _apply(example, tokenizer, upto, prompted, tokenize=True)
    if found[: len(tokens)] == tokens:
        return found, whole
    if whole.startswith(text):
        # Tokens that span the border, such as a newline before the answer and one at its start: the model is
        # prompted by what stands before, and what it says is tokens of their own.
        return [*tokens, *tokenizer(whole[len(text) :], add_special_tokens=False).input_ids], whole
    raise UserError(
        f"The tokenizer's chat template cannot be used: in example {example.id} the tokens before "
        f"message {upto}, an answer, change once the conversation goes on, so it cannot be said "
        "which tokens are the answer. Use data whose conversations have one answer, or a chat "
        "template that only ever appends (data.chat_template)."
    )


def _apply(example: Example, tokenizer: PreTrainedTokenizerBase, upto: int, prompted: bool, tokenize: bool) -> Any:
    messages: list[Message] = list(example.messages[:upto])
    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=tokenize, return_dict=False, add_generation_prompt=prompted
        )
    except TemplateError as error:
        raise UserError(
            f"The tokenizer's chat template refuses example {example.id} (roles "
            f"{', '.join(message['role'] for message in messages)}): {error}. Give conversations that it "
            "takes."
        ) from error
