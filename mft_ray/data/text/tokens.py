"""Text as tokens: special tokens once, and no space that the text does not have."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

# What a text is put after to be encoded as the continuation that it is; the first that its tokens do not run into.
_BEFORE = ("\n", "a", ".", "0")


def rendered_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the tokens of what a chat template wrote, in which all special tokens are written out."""
    tokens: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return tokens


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the tokens of a plain text that goes on: with what the tokenizer puts before texts, once, and no end."""
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    tokens: list[int] = tokenizer(text, add_special_tokens=not (bos and text.startswith(bos))).input_ids
    # Some tokenizers end every text; here the text goes on.
    if tokens and tokens[-1] == tokenizer.eos_token_id and not text.endswith(eos):
        tokens = tokens[:-1]
    return tokens


def continued_tokens(
    tokenizer: PreTrainedTokenizerBase,
    tokens: list[int],
    text: str,
    whole: str,
    encode: Callable[[PreTrainedTokenizerBase, str], list[int]],
) -> list[int]:
    """Return the tokens of a text that begins with another one, whose tokens come first and unchanged.

    They are the tokens of the whole text, except where one of those spans the border, such as a newline before an
    answer and one at its start: the model is prompted by what stands before, and what it says is tokens of their own.

    Args:
        tokenizer: tokenizer of the model.
        tokens: tokens of the text before.
        text: before.
        whole: begins with that text.
        encode: `rendered_tokens` or `prompt_tokens`.
    """
    found = encode(tokenizer, whole)
    if found[: len(tokens)] == tokens:
        return found
    return tokens + _inner_tokens(tokenizer, whole[len(text) :])


def _inner_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the tokens of a text within another one: some tokenizers write a space before every text of its own."""
    for before in _BEFORE:
        left, both = rendered_tokens(tokenizer, before), rendered_tokens(tokenizer, before + text)
        if left and both[: len(left)] == left:
            return both[len(left) :]
    return rendered_tokens(tokenizer, text)
