"""Models and tokenizers: from a local folder, a hub id, or settings of a new model."""

from __future__ import annotations

import dataclasses
import difflib
import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    set_seed,
)
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from mft_ray.errors import UserError

# Older names that transformers still turns into fields of a config.
_OLDER_FIELDS = {"rope_theta", "rope_scaling", "torch_dtype"}

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_model(path: str | Path, dtype: str | None = None, attention: str | None = None) -> PreTrainedModel:
    """Load a causal LM.

    Args:
        path: local folder or hub id.
        dtype: ``float32`` or ``bfloat16``; None keeps the checkpoint's own, as a fingerprint needs it.
        attention: transformers' attn_implementation; None lets transformers choose.

    Raises:
        UserError: there is no such model, or it is not a causal LM.
    """
    path = check_path(str(path))
    settings: dict[str, Any] = {"dtype": DTYPES[dtype] if dtype else "auto"}
    if attention:
        settings["attn_implementation"] = attention
    _quiet()
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, **settings)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(_cannot_load("model", path, error)) from None
    return model


def new_model(architecture: dict[str, Any], vocabulary: int, seed: int) -> PreTrainedModel:
    """Return a randomly initialised causal LM.

    Args:
        architecture: ``model_type`` and any of its transformers config's fields.
        vocabulary: number of tokens.
        seed: of the initial weights.

    Raises:
        UserError: transformers knows no such model type or field, or it is not a causal LM.
    """
    fields = dict(architecture)
    model_type = fields.pop("model_type", None)
    _check_model_type(model_type, architecture)
    _check_fields(model_type, fields)
    _quiet()
    set_seed(seed)
    try:
        config = AutoConfig.for_model(model_type, vocab_size=vocabulary, **fields)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except (ValueError, KeyError, TypeError, StrictDataclassError) as error:
        # transformers' validation says what is wrong on later lines, and lists hundreds of types on one.
        reason = " ".join(str(error).split())
        raise UserError(f"model.architecture {architecture} makes no causal LM: {reason[:400]}") from None
    return model


def _check_model_type(model_type: Any, architecture: dict[str, Any]) -> None:
    known = list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    if model_type not in known:
        close = difflib.get_close_matches(str(model_type), known, cutoff=0.5) or ["llama", "qwen3", "gpt2"]
        raise UserError(
            f"model.architecture {architecture} makes no causal LM: its model_type is {model_type!r}, which "
            f"transformers has no causal LM for. Give one that it has, such as {', '.join(close)}."
        )


def _check_fields(model_type: str, fields: dict[str, Any]) -> None:
    """Refuse what transformers would take and ignore: a mistyped size makes a model of another size."""
    config = CONFIG_MAPPING[model_type]
    known = {field.name for field in dataclasses.fields(config)} | set(config.attribute_map) | _OLDER_FIELDS
    for unknown in sorted(fields.keys() - known):
        close = difflib.get_close_matches(unknown, known) or sorted(known - {"architectures", "transformers_version"})
        raise UserError(
            f"model.architecture {fields} makes no causal LM of type {model_type}: that has no {unknown} but "
            f"{', '.join(close)}."
        )


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load a tokenizer and make sure that it has a padding token.

    Raises:
        UserError: there is none at the path.
    """
    path = check_path(str(path))
    _quiet()
    try:
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(_cannot_load("tokenizer", path, error)) from None
    if tokenizer.eos_token_id is None:
        raise UserError(f"The tokenizer of {path} has no end-of-sequence token; answers could never end. Set one.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_path(path: str, setting: str = "model.path") -> str:
    """Refuse what looks like a folder and is not there, before it is taken for a hub id.

    Returns:
        The path with ``~`` expanded, which transformers does not do; a hub id as it is.

    Raises:
        UserError: naming the folder.
    """
    # A hub id has one slash as well, but its owner is rarely a folder here.
    looks_local = path.startswith(("/", ".", "~")) or path.count("/") > 1 or os.path.isdir(path.split("/")[0])
    if looks_local and not os.path.isdir(os.path.expanduser(path)):
        raise UserError(
            f"There is no model folder {path}. Give {setting} a folder with config.json and weights, or a hub "
            "id such as HuggingFaceTB/SmolLM2-135M-Instruct."
        )
    return os.path.expanduser(path) if looks_local else path


def _cannot_load(what: str, path: str | Path, error: Exception) -> str:
    return (
        f"Cannot load a {what} from {path}: {_first_line(error)} Give model.path a folder that transformers can "
        "load as a causal LM, or a hub id that this machine can reach."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _quiet() -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
