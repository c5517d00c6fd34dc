"""Whether a tokenizer and a model have the same vocabulary."""

from __future__ import annotations

from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase as Tokenizer

from mft_ray.errors import UserError
from mft_ray.models.files import some


def embedded(model: nn.Module) -> int:
    """Return how many tokens a model has an embedding of."""
    return int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator, union-attr]


def check_vocabulary(tokenizer: Tokenizer, model: nn.Module, path: str | Path) -> list[str]:
    """Refuse a tokenizer that makes tokens of which the model has no embedding.

    A special token that nothing uses is let through, since some makers ship one (Gemma 3's text models have no
    embedding of their tokenizer's image token): a text in which it is written is refused when it is read.

    Args:
        tokenizer: as `mft_ray.models.loading.load_tokenizer` gives it.
        model: or its structure.
        path: path of the model.

    Returns:
        The tokens that were let through.

    Raises:
        UserError: naming tokens, and what to do.
    """
    rows = embedded(model)
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}
    used = set(filter(None, (tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token)))
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    template = str(tokenizer.chat_template or "")
    harmful = [token for token in beyond if token in used or token not in special or token in template]
    if harmful:
        raise UserError(
            f"The tokenizer of {path} has tokens that its model has no embedding of: {some(harmful)}, and the model "
            f"has {rows:,} embeddings, for the ids 0 to {rows - 1}. Take the tokens out of the tokenizer, or give the "
            "model embeddings of them and fine-tune it: model.resize_token_embeddings(len(tokenizer)), then "
            "save_pretrained."
        )
    return sorted(beyond)
