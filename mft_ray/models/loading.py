"""Models and tokenizers: from a local folder, a hub id, or settings of a new model."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    set_seed,
)
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from mft_ray.errors import UserError
from mft_ray.models.files import (
    cannot_load,
    check_files,
    check_numbers,
    check_unquantized,
    finite,
    not_finite,
    reason,
    some,
    stored_shapes,
)
from mft_ray.models.hub import split_revision
from mft_ray.utils.json_types import JsonObject

# Older names that transformers still turns into fields of a config.
_OLDER_FIELDS = {"rope_theta", "rope_scaling", "torch_dtype"}
_GIVEN_HERE = {"vocab_size", "dtype", "torch_dtype", "quantization_config"}
_MAX_LAYERS = 10_000

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_model(path: str | Path, dtype: str | None = None, attention: str | None = None) -> PreTrainedModel:
    """Load a causal LM.

    Args:
        path: local folder or hub id.
        dtype: ``float32`` or ``bfloat16``; None keeps the checkpoint's own, as a fingerprint needs it.
        attention: transformers' attn_implementation; None lets transformers choose.

    Raises:
        UserError: there is no such model, it is not a causal LM, or its weights are not all there and numbers.
    """
    settings: JsonObject = {"dtype": DTYPES[dtype] if dtype else "auto"}
    if attention:
        settings["attn_implementation"] = attention
    model = _load(str(path), settings)
    if broken := [name for name, parameter in model.named_parameters() if not finite(parameter)]:
        raise UserError(not_finite(path, broken))
    return model


def in_dtype(
    model: PreTrainedModel, path: str | Path, dtype: str | None, attention: str | None = None
) -> PreTrainedModel:
    """Return a model that was loaded as its checkpoint is, in another dtype: loaded anew where that differs.

    What a model computes in fp32 whatever its weights are, rotary positions above all, is held in buffers that
    ``model.to(dtype)`` would round: in bfloat16, at position 2,000, by up to 0.4 of a turn.

    Args:
        model: as `load_model` gave it without a dtype; not to be used afterwards.
        path: where it was loaded from.
        dtype: same as in `load_model`.
        attention: same as in `load_model`.
    """
    if dtype is None or {parameter.dtype for parameter in model.parameters()} == {DTYPES[dtype]}:
        return model
    return load_model(path, dtype, attention)


def load_to_train(path: str | Path, attention: str | None = None) -> PreTrainedModel:
    """Load a causal LM whose every weight is to be trained in fp32, which whoever trains it makes of them.

    Weights in the checkpoint's dtype are the mapped file, of which a machine holds one copy for all of its workers.

    Args:
        path: local folder or hub id.
        attention: same as in `load_model`.

    Returns:
        The model in the checkpoint's dtype; in fp32 where it has buffers that would not be those of the fp32 model.

    Raises:
        UserError: as of `load_model`.
    """
    model = load_model(path, None, attention)
    exact = all(buffer.dtype == torch.float32 for buffer in model.buffers() if buffer.is_floating_point())
    return model if exact else load_model(path, "float32", attention)


def check_model(path: str | Path) -> PreTrainedModel:
    """Refuse a model that `load_model` would refuse, before anything is begun with it.

    Returns:
        The model's structure, without its weights.

    Raises:
        UserError: as of `load_model`. Of a hub id NaN is found only when it is loaded.
    """
    model = _load(str(path), {"device_map": "meta", "dtype": "auto"})
    folder = Path(path).expanduser()
    if folder.is_dir():
        check_numbers(folder)
    return model


def load_skeleton(path: str | Path, weights: bool = True) -> PreTrainedModel:
    """Return a model's structure by its configuration alone.

    Args:
        path: local folder or hub id.
        weights: whether a folder must hold weights beside it.

    Raises:
        UserError: there is no such model, or it is not a causal LM.
    """
    path = _checked(str(path)) if weights else check_path(str(path))
    with _told("model", path), torch.device("meta"):
        name, revision = split_revision(path)
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
        check_unquantized(path, config)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return model


def check_attention(attention: str | None) -> None:
    """Refuse what is no attn_implementation of transformers.

    Raises:
        UserError: naming those that there are.
    """
    known = sorted({"eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()})
    named = attention and attention.removeprefix("paged|")
    if named and named not in known and "/" not in named:  # with a slash it is a kernel on the hub
        raise UserError(f"model.attention {attention!r} is unknown to transformers, which has {', '.join(known)}.")


def _load(path: str, settings: JsonObject) -> PreTrainedModel:
    """Load a model, whole or not at all: transformers draws what a checkpoint lacks and leaves out what is too much."""
    path = _checked(path)
    with _told("model", path):
        name, revision = split_revision(path)
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
        check_unquantized(path, config)
        model: PreTrainedModel
        try:
            model, found = AutoModelForCausalLM.from_pretrained(
                name,
                revision=revision,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                trust_remote_code=False,
                **settings,
            )
        except RuntimeError as error:
            if "conversion of the weights" in str(error):
                _refuse_parts(path, *_in_files(path))
            raise
        if found["mismatched_keys"]:
            _refuse_parts(path, *_in_files(path))
    _refuse_parts(path, found["missing_keys"], found["unexpected_keys"], found["mismatched_keys"])
    if getattr(model, "_hf_peft_config_loaded", False):  # on the hub, where its files were not looked at
        raise UserError(
            cannot_load(path, "there is an adapter beside it, which transformers put on it. Merge it first.")
        )
    return model


def _refuse_parts(
    path: str, missing: Iterable[str], unexpected: Iterable[str], mismatched: Iterable[tuple[str, Any, Any]]
) -> None:
    """Refuse a checkpoint that has not exactly the model's weights."""
    wrong = {
        "are missing": list(missing),
        "are of no part of the model": list(unexpected),
        "have another shape": [f"{name} {list(stored)} for {list(wanted)}" for name, stored, wanted in mismatched],
    }
    if told := [f"{some(names)} {what}" for what, names in wrong.items() if names]:
        raise UserError(
            cannot_load(
                path,
                f"its weights are not those of the model in its config.json: {'; '.join(told)}. Give a whole "
                "checkpoint of a causal LM, as save_pretrained writes it.",
            )
        )


def _in_files(path: str) -> tuple[set[str], set[str], list[tuple[str, Any, Any]]]:
    """Return which weights a folder's files lack, have too many, and have in another shape, as they are called there.

    transformers makes one weight of the experts of a layer, and then says nothing of the one that is missing.
    """
    model = load_skeleton(path)
    wanted = revert_weight_conversion(model, dict(model.state_dict()))
    stored = stored_shapes(Path(path))
    tied = set(model.all_tied_weights_keys)
    differing = [
        (name, stored[name], list(tensor.shape))
        for name, tensor in wanted.items()
        if name in stored and stored[name] != list(tensor.shape)
    ]
    missing = wanted.keys() - stored.keys() - tied
    if len(missing) > len(wanted) / 2:  # they are called otherwise there: a hub's cache, or a checkpoint of long ago
        return set(), set(), []
    return missing, stored.keys() - wanted.keys(), differing


def new_model(architecture: JsonObject, vocabulary: int, seed: int) -> PreTrainedModel:
    """Return a randomly initialised causal LM.

    Args:
        architecture: ``model_type`` and any of its transformers config's fields.
        vocabulary: number of tokens.
        seed: seed of the initial weights.

    Raises:
        UserError: transformers knows no such model type or field, or it is not a causal LM.
    """
    fields = copy.deepcopy(architecture)  # transformers completes nested ones in place
    model_type = fields.pop("model_type", None)
    _check_model_type(model_type, architecture)
    _check_fields(model_type, fields)
    _quiet()
    set_seed(seed)
    try:
        config = AutoConfig.for_model(model_type, vocab_size=vocabulary, **fields)
        layers = getattr(config, "num_hidden_layers", 1)
        if not 0 < layers <= _MAX_LAYERS:
            raise ValueError(f"it has {layers} decoder layers; 1 to {_MAX_LAYERS} are possible.")
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        _try_out(model)
    except MemoryError:
        raise
    except Exception as error:  # whatever transformers and torch stumble over is in these settings
        # transformers' validation says what is wrong on later lines, and lists hundreds of types on one.
        why = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"model.architecture {_shown(architecture)} makes no causal LM: {why[:400]}") from None
    return model


@torch.no_grad()
def _try_out(model: PreTrainedModel) -> None:
    """Compute something: sizes that do not go together show only then."""
    if empty := [name for name, parameter in model.named_parameters() if not parameter.numel()]:
        raise ValueError(f"{some(empty)} of its weights are empty.")
    if not next(model.parameters()).is_meta:
        with torch.random.fork_rng(devices=[]):
            model(input_ids=torch.zeros(1, 2, dtype=torch.long))


def _shown(architecture: JsonObject) -> str:
    text = str(architecture)
    return text if len(text) <= 300 else f"{text[:300]}…"


def _check_model_type(model_type: Any, architecture: JsonObject) -> None:
    known = list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    if not isinstance(model_type, str) or model_type not in known:
        close = difflib.get_close_matches(str(model_type), known, cutoff=0.5) or ["llama", "qwen3", "gpt2"]
        raise UserError(
            f"model.architecture {_shown(architecture)} makes no causal LM: its model_type is "
            f"{str(model_type)[:60]!r}, which transformers has no causal LM for. Give one that it has, such as "
            f"{', '.join(close)}."
        )


def _check_fields(model_type: str, fields: JsonObject) -> None:
    """Refuse what transformers would take and ignore: a mistyped size makes a model of another size."""
    config = CONFIG_MAPPING[model_type]
    known = {field.name for field in dataclasses.fields(config)} | set(config.attribute_map) | _OLDER_FIELDS
    if taken := sorted(fields.keys() & _GIVEN_HERE):
        raise UserError(
            f"model.architecture {_shown(fields)} makes no causal LM: {', '.join(taken)} cannot be set, since the "
            "vocabulary is the task's and weights are trained in float32."
        )
    for unknown in sorted(fields.keys() - known):
        close = difflib.get_close_matches(unknown, known) or sorted(known - {"architectures", "transformers_version"})
        raise UserError(
            f"model.architecture {_shown(fields)} makes no causal LM of type {model_type}: that has no {unknown} but "
            f"{', '.join(close)}."
        )


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load a tokenizer and make sure that it has a padding token.

    Raises:
        UserError: there is none at the path.
    """
    path = check_path(str(path))
    with _told("tokenizer", path):
        name, revision = split_revision(path)
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
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
    if os.path.isfile(os.path.expanduser(path)):
        raise UserError(f"{setting} {path} is a file. Give the folder that it is in: config.json and weights together.")
    if not path.strip() or (looks_local and not os.path.isdir(os.path.expanduser(path))):
        raise UserError(
            f"There is no model folder {path or repr(path)}. Give {setting} a folder with config.json and weights, "
            "or a hub id such as HuggingFaceTB/SmolLM2-135M-Instruct."
        )
    return os.path.expanduser(path) if looks_local else path


def _checked(path: str) -> str:
    path = check_path(path)
    if os.path.isdir(path):
        check_files(Path(path))
    return path


@contextmanager
def _told(what: str, path: str) -> Iterator[None]:
    """Tell what transformers stumbles over: what it loads is a stranger's, so that whatever it is is in the files."""
    _quiet()
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"Cannot load a {what} from {path}: it needs program code that is beside it (auto_map in its "
                "configuration), and such code is never run here. Give a model that transformers has a class of its "
                "own for; many have been converted on the hub."
            ) from None
        raise UserError(
            f"Cannot load a {what} from {path}: {reason(error)} Give model.path a folder that transformers can "
            "load as a causal LM, or a hub id that this machine can reach."
        ) from None


def _quiet() -> None:
    # It warns of a machine without a GPU, once a process, when transformers asks whether it shards the model.
    logging.getLogger("DeepSpeed").addFilter(_not_of_accelerators)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _not_of_accelerators(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Setting accelerator to CPU")
