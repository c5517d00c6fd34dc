"""LoRA adapters on disk and on a model, as peft has them, with what it takes to trust them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import PreTrainedModel

from mft_ray.errors import UserError
from mft_ray.training.export import check_fingerprint, replace_folder

_BACKBONE = "backbone.json"


def save_adapter(wrapped: Any, state: Mapping[str, torch.Tensor], backbone: str, folder: Path) -> None:
    """Write an adapter as peft does, whole or not at all, and beside it which backbone it is of.

    Args:
        wrapped: peft's model.
        state: the adapter's weights by peft's names.
        backbone: fingerprint of the model that it was trained on.
        folder: replaced if it exists.
    """

    def write(partial: Path) -> None:
        wrapped.save_pretrained(str(partial), state_dict=dict(state), save_embedding_layers=False)
        (partial / "README.md").unlink(missing_ok=True)  # peft's model card is a form to fill in
        (partial / _BACKBONE).write_text(json.dumps({"fingerprint": backbone}) + "\n")

    replace_folder(folder, write)


def is_adapter(path: str | Path) -> bool:
    """Say whether a path is the folder of a LoRA adapter, ours or any other of peft's."""
    return (Path(path) / "adapter_config.json").exists()


def check_adapter(folder: str | Path, backbone: str | Path, found: str) -> None:
    """Refuse an adapter of another model, where that is known.

    Args:
        folder: of the adapter.
        backbone: where the model came from.
        found: the model's fingerprint.

    Raises:
        UserError: the adapter was trained on another one.
    """
    note = Path(folder) / _BACKBONE
    if note.exists():
        check_fingerprint("backbone", backbone, found, json.loads(note.read_text())["fingerprint"], what="adapter")


def put_adapter(model: PreTrainedModel, folder: str | Path) -> Any:
    """Put an adapter on a model, in place.

    Returns:
        peft's wrapper, whose ``unload`` takes it off and ``merge_and_unload`` makes it part of the weights.

    Raises:
        UserError: it does not fit the model, or is damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return peft.PeftModel.from_pretrained(model, str(folder))
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"The adapter {folder} cannot be put on this model ({reason}).") from None
