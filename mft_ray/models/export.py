"""Ordinary Hugging Face folders: of a fine-tuned model, and of a backbone with its mask applied."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from mft_ray.data.text.ends import stop_tokens
from mft_ray.errors import UserError
from mft_ray.masking import MaskFile, apply_masks, check_fits, fingerprint
from mft_ray.models.loading import in_dtype, load_model
from mft_ray.utils.files import replacing


def save_model(model: PreTrainedModel, state: dict[str, torch.Tensor], tokenizer: Tokenizer, folder: Path) -> None:
    """Write a model with the given parameters, whole or not at all.

    Args:
        model: gives the architecture; its own weights are not used.
        state: every parameter by name, tied ones once.
        tokenizer: saved beside it.
        folder: replaced if it exists.
    """

    def write(partial: Path) -> None:
        dtype = next(iter(state.values())).dtype
        dtype_before, generation_before = model.config.dtype, model.generation_config
        try:
            model.generation_config = generation_config_of(model, tokenizer)
            model.save_pretrained(partial, state_dict=dict(state))
            # save_pretrained notes the dtype of the model, not of the state.
            model.config.dtype = dtype
            model.config.save_pretrained(partial)
        finally:
            model.config.dtype, model.generation_config = dtype_before, generation_before
        tokenizer.save_pretrained(partial)

    replace_folder(folder, write)


def generation_config_of(model: PreTrainedModel, tokenizer: Tokenizer) -> GenerationConfig | None:
    """Return a model's generation config, stopping where its answers were scored to end.

    Args:
        model: whose own is kept but for ``eos_token_id``.
        tokenizer: the model's, with the chat template that it is prompted by.
    """
    if model.generation_config is None:
        return None
    config = copy.deepcopy(model.generation_config)
    ends = sorted(stop_tokens(model, tokenizer))
    config.eos_token_id = ends if len(ends) > 1 else ends[0] if ends else None
    return config


def load_masked(
    backbone: str | Path,
    mask: MaskFile,
    dtype: str | None = None,
    attention: str | None = None,
    pretrained: str | Path | None = None,
) -> PreTrainedModel:
    """Return the backbone with a mask applied, once it is sure that they belong together.

    Args:
        backbone: folder or hub id of the model that the mask was learned on.
        mask: content of a mask file.
        dtype: dtype of the returned model; None keeps the checkpoint's.
        attention: transformers' attn_implementation.
        pretrained: folder or hub id of the model before fine-tuning, for a mask that removes the delta.

    Raises:
        UserError: the mask was learned on another model, or fits none.
    """
    model = load_model(backbone, None, attention)
    check_fingerprint("backbone", backbone, fingerprint(model), mask.backbone, origin=mask.origin)
    origins = None
    if mask.settings.removes == "delta":
        if pretrained is None:
            raise UserError(
                "This mask takes weights back to what they were before fine-tuning. Give that checkpoint too "
                "(--pretrained; see RUN/best/README.md)."
            )
        earlier = load_model(pretrained)
        check_fingerprint("model before fine-tuning", pretrained, fingerprint(earlier), mask.before)
        origins = dict(earlier.named_parameters())
    check_fits(model, mask.masks, origins, mask.source)
    model = in_dtype(model, backbone, dtype, attention)
    apply_masks(model, mask.masks, origins)
    return model


@contextmanager
def masked_for_now(model: PreTrainedModel, mask: MaskFile, pretrained: PreTrainedModel | None = None) -> Iterator[None]:
    """Apply a mask to a backbone, and take it off again: several masks can share one model in memory.

    Args:
        model: what the mask was learned on; not checked.
        mask: content of a mask file.
        pretrained: the model before fine-tuning, for a mask that removes the delta.
    """
    removed = {name: model.get_parameter(name).detach()[~keep.to(model.device)] for name, keep in mask.masks.items()}
    apply_masks(model, mask.masks, None if pretrained is None else dict(pretrained.named_parameters()))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, values in removed.items():
                model.get_parameter(name)[~mask.masks[name].to(model.device)] = values


def check_fingerprint(
    model: str, path: str | Path, found: str, wanted: str, what: str = "mask", origin: str = ""
) -> None:
    """Refuse a mask, or an adapter, of another model.

    Args:
        model: which model this is.
        path: where it came from.
        found: its fingerprint.
        wanted: the one that the mask names.
        what: that names it.
        origin: where the right model is on the hub, if that is known.

    Raises:
        UserError: they differ.
    """
    if found != wanted:
        give = origin or "the checkpoint that the search used (RUN/best/README.md says which)"
        raise UserError(
            f"This {what} was learned on another {model}: it names {wanted[:12]}..., and {path} is "
            f"{found[:12]}.... Give {give}; any change to its weights makes the {what} meaningless."
        )


def check_empty(folder: Path, purpose: str) -> None:
    """Refuse a folder that something is in.

    Args:
        folder: folder that is to be written.
        purpose: what it is to be given for, as the last words of the error.

    Raises:
        UserError: it is not empty, or a file.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        what = "not empty" if folder.is_dir() else "a file"
        raise UserError(f"The folder {folder} is {what}. Give an empty or a new folder {purpose}.")


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder, whole or not at all.

    Args:
        folder: replaced if it exists.
        write: fills a new folder, whose name it gets.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder) as partial:
        write(partial)
