"""The one rule of what ends an answer: for labels, metrics, generation and tasks."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from mft_ray.data.text.chat import Chat


def end_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the tokens that end an answer: those that the chat template ends turns with, and the end of sequence.

    Args:
        tokenizer: tokenizer of the model, with the chat template that it is prompted by if there is one.
    """
    found = set() if tokenizer.eos_token_id is None else {tokenizer.eos_token_id}
    return frozenset(found | Chat(tokenizer).ends if tokenizer.chat_template else found)


def stop_tokens(model: Any, tokenizer: PreTrainedTokenizerBase | None) -> frozenset[int]:
    """Return the tokens that stop generation: `end_tokens` and those of the model's own generation config.

    Args:
        model: a Hugging Face causal LM.
        tokenizer: the model's; None leaves its tokens out.
    """
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    known = frozenset(own if isinstance(own, list) else [] if own is None else [own])
    return known if tokenizer is None else known | end_tokens(tokenizer)
