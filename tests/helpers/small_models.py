"""A model of a few thousand weights, whose tokens are letters, with a chat template."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mft_ray.models.export import save_model
from mft_ray.models.loading import new_model

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def save_tiny(folder: Path, template: str | None = TEMPLATE, layers: int = 6) -> Path:
    """A model whose tokens are letters."""
    letters = {chr(code): code - 32 for code in range(32, 127)}
    special = ["<user>", "<assistant>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"]
    vocabulary = letters | {token: len(letters) + number for number, token in enumerate(special)}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    plain.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    plain.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="</s>", pad_token="</s>", unk_token="?")
    tokenizer.chat_template = template
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": layers}
    made = new_model({"model_type": "llama", **sizes, "max_position_embeddings": 256}, len(tokenizer), 0)
    made.config.eos_token_id = made.config.pad_token_id = tokenizer.eos_token_id
    save_model(made, dict(made.named_parameters()), tokenizer, folder)
    return folder
