"""Greedy generation, many prompts at once: batched by length, with a key-value cache, no step for who has finished."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from transformers import DynamicCache

from mft_ray.data.collate import collate_prompts
from mft_ray.data.text import thoughts
from mft_ray.data.text.ends import stop_tokens
from mft_ray.data.text.tokens import prompt_tokens, rendered_tokens
from mft_ray.errors import UserError
from mft_ray.models.positions import positions

Prompt = str | list[int]
# Told whether this worker still generates, and says whether any does.
InStep = Callable[[bool], bool]

# What is left of a batch is moved together when so much of it has finished: moving copies the cache.
_MOVE_AT = 0.25
# A stop string may begin within a token and end within another.
_SLACK = 8


@dataclass(frozen=True)
class Generated:
    """What came out of one prompt.

    Attributes:
        text: up to, and without, the first stop string or end token. Thoughts before an answer are not part of it.
        tokens: generated, what stopped it and thoughts included.
        finished: whether it came to a stop by itself.
        thought: what stood before the answer of a model that thinks.
    """

    text: str
    tokens: int
    finished: bool
    thought: str = ""


@dataclass(frozen=True)
class Encoded:
    """What a generator, ours or another, needs to know.

    Attributes:
        prompts: tokens of each.
        until: strings that end a text.
        ends: tokens that do.
        thinking: whether each prompt ends within a thought. Stop strings end no thought.
    """

    prompts: list[list[int]]
    until: list[str]
    ends: frozenset[int]
    thinking: list[bool]

    def some(self, indices: Sequence[int]) -> Encoded:
        """Return the same of some of the prompts."""
        prompts, thinking = [self.prompts[index] for index in indices], [self.thinking[index] for index in indices]
        return Encoded(prompts, self.until, self.ends, thinking)


# Not inference_mode: what layers cache here is used in training afterwards.
@torch.no_grad()
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    until: Sequence[str] = (),
    ends: frozenset[int] | None = None,
    max_new_tokens: int = 256,
    batch_size: int = 16,
    autocast: torch.dtype | None = None,
    rendered: bool = False,
    in_step: InStep | None = None,
) -> Iterator[tuple[int, Generated]]:
    """Continue prompts by the most probable token, and yield each as its batch ends, with its place in ``prompts``.

    Args:
        model: a Hugging Face causal LM, in evaluation mode, on its device.
        tokenizer: the model's.
        prompts: texts or their tokens; the left of one that is too long for the model is cut off.
        until: strings that end a text.
        ends: tokens that end a text; None takes the model's own.
        max_new_tokens: largest number of new tokens of each.
        batch_size: prompts per forward.
        autocast: compute dtype, or None for the model's own.
        rendered: whether texts are what a chat template wrote, all special tokens with it.
        in_step: for a model whose parameters are split over workers (ZeRO-3), which forward together: asked by each
            after every forward. All must generate equally many batches.

    Raises:
        UserError: the model's positions leave no room for ``max_new_tokens``.
    """
    encoded = encode(model, tokenizer, prompts, until, max_new_tokens, rendered, ends)
    # The longest first: a batch too large for the memory fails at once.
    order = sorted(range(len(prompts)), key=lambda index: -len(encoded.prompts[index]))
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        context = torch.autocast(model.device.type, dtype=autocast) if autocast else nullcontext()
        with context:
            batch = encoded.some(indices)
            rows = _batch(model, tokenizer, batch, max_new_tokens, in_step)
        for index, tokens in zip(indices, rows, strict=True):
            yield index, read(tokenizer, tokens, encoded, index)


def encode(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    until: Sequence[str],
    max_new_tokens: int,
    rendered: bool = False,
    ends: frozenset[int] | None = None,
) -> Encoded:
    """Turn prompts into tokens, and tell stop strings that are tokens from others. Arguments as of `generate`."""
    room = room_for_prompts(model.config, max_new_tokens)
    special = tokenizer.all_special_tokens
    encode_text = rendered_tokens if rendered else prompt_tokens
    tokens = [encode_text(tokenizer, prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    return Encoded(
        [each[-room:] for each in tokens],
        [stop for stop in until if stop not in special],
        (stop_tokens(model, tokenizer) if ends is None else ends)
        | {tokenizer.convert_tokens_to_ids(stop) for stop in until if stop in special},
        [thoughts.open_at_end(tokenizer, each) for each in tokens],
    )


def read(tokenizer: Any, tokens: Sequence[int], encoded: Encoded, index: int) -> Generated:
    """Turn the tokens that followed a prompt, what stopped them included, into what came out of it.

    Args:
        tokenizer: the model's.
        tokens: generated.
        encoded: what they were generated from.
        index: index of the prompt.
    """
    ended = bool(tokens) and tokens[-1] in encoded.ends
    thought, text = thoughts.split(tokenizer, tokens[:-1] if ended else tokens, encoded.thinking[index], ended)
    found = [place for stop in encoded.until if (place := text.find(stop)) >= 0]
    return Generated(text[: min(found)] if found else text, len(tokens), ended or bool(found), thought)


def _batch(model: Any, tokenizer: Any, encoded: Encoded, limit: int, in_step: InStep | None = None) -> list[list[int]]:
    """Return the tokens that follow each prompt, up to what stopped it."""
    prompts, until, ends = encoded.prompts, encoded.until, encoded.ends
    made: list[list[int]] = [[] for _ in prompts]
    padded = collate_prompts([{"prompt_ids": prompt} for prompt in prompts], tokenizer.pad_token_id or 0)
    tokens, mask = (padded[name].to(model.device) for name in ("input_ids", "attention_mask"))
    places = (mask.cumsum(dim=1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    rows = list(range(len(prompts)))  # of `made`, in the batch's order
    going = dict.fromkeys(rows, True)
    answering = [thoughts.Answering(tokenizer, begun) for begun in encoded.thinking]
    tail = max((len(stop) for stop in until), default=0) + _SLACK
    takes = inspect.signature(model.forward).parameters
    held = {"cache" if "cache" in takes else "past_key_values": cache}  # the latter before transformers 5.24
    last = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
    for step in count(1):
        output = model(input_ids=tokens, attention_mask=mask, position_ids=places, use_cache=True, **held, **last)
        chosen = output.logits[:, -1].argmax(dim=-1)
        for row, token in zip(rows, chosen.tolist(), strict=True):
            if going[row]:
                made[row].append(token)
                going[row] = token not in ends
        if until:
            alive = [row for row in rows if going[row] and answering[row].at(made[row])]
            windows = [made[row][max(answering[row].begins, len(made[row]) - tail) :] for row in alive]
            for row, text in zip(alive, tokenizer.batch_decode(windows, skip_special_tokens=True), strict=True):
                said = text.lstrip() if len(made[row]) - tail <= answering[row].begins > 0 else text
                going[row] = not any(stop in said for stop in until)
        left = [place for place, row in enumerate(rows) if going[row]]
        if not left or step >= limit:
            break
        if in_step:
            in_step(True)
        if len(left) <= (1 - _MOVE_AT) * len(rows):
            keep = torch.tensor(left, device=model.device)
            cache.batch_select_indices(keep)
            chosen, mask, places, rows = chosen[keep], mask[keep], places[keep], [rows[place] for place in left]
        tokens, places = chosen[:, None], places[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
    while in_step and in_step(False):  # the others need this one's part of the parameters
        model(input_ids=tokens[:1, :1], use_cache=False)
    return made


def room_for_prompts(config: Any, max_new_tokens: int) -> int:
    """Return how many tokens a prompt may have.

    Args:
        config: configuration of the model.
        max_new_tokens: to be generated after it.

    Raises:
        UserError: there is no room left for one.
    """
    most = positions(config)
    if most is None:
        return 2**31
    if most <= max_new_tokens:
        raise UserError(
            f"The model has {most} positions, so {max_new_tokens} new tokens leave no room for a prompt. Generate "
            "fewer (evaluation.task_max_new_tokens; --max-new-tokens of mft-ray evaluate)."
        )
    return most - max_new_tokens
