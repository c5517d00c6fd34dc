"""LoRA adapters on disk and on a model, as peft has them, with what it takes to trust them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from peft.utils import get_peft_model_state_dict, load_peft_weights
from transformers import PreTrainedModel

from mft_ray.errors import UserError
from mft_ray.models.export import check_fingerprint, replace_folder
from mft_ray.models.files import finite, reason, some

_BACKBONE = "backbone.json"


def save_adapter(
    wrapped: Any, state: Mapping[str, torch.Tensor], backbone: str, folder: Path, origin: str = ""
) -> None:
    """Write an adapter as peft does, whole or not at all, and beside it which backbone it is of.

    Args:
        wrapped: peft's model.
        state: the adapter's weights by peft's names.
        backbone: fingerprint of the model that it was trained on.
        folder: replaced if it exists.
        origin: where the model is on the hub, see `mft_ray.masking.MaskFile`.
    """
    note = {"fingerprint": backbone} | ({"origin": origin} if origin else {})

    def write(partial: Path) -> None:
        wrapped.save_pretrained(str(partial), state_dict=dict(state), save_embedding_layers=False)
        (partial / "README.md").unlink(missing_ok=True)  # peft's model card is a form to fill in
        (partial / _BACKBONE).write_text(json.dumps(note) + "\n")

    replace_folder(folder, write)


def is_adapter(path: str | Path) -> bool:
    """Say whether a path is the folder of a LoRA adapter, ours or any other of peft's."""
    return (Path(path) / "adapter_config.json").exists()


def check_adapter(folder: str | Path, backbone: str | Path, found: str) -> None:
    """Refuse an adapter of another model, where that is known.

    Args:
        folder: folder of the adapter.
        backbone: where the model came from.
        found: the model's fingerprint.

    Raises:
        UserError: the adapter was trained on another one.
    """
    if (known := backbone_of(folder)) is not None:
        wanted, origin = known
        check_fingerprint("backbone", backbone, found, wanted, what="adapter", origin=origin)


def backbone_of(folder: str | Path) -> tuple[str, str] | None:
    """Return fingerprint and origin of the model that an adapter was trained on; None where its folder says neither.

    Args:
        folder: folder of the adapter.

    Raises:
        UserError: what says it is damaged.
    """
    note = Path(folder) / _BACKBONE
    if not note.exists():
        return None
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
        return str(known["fingerprint"]), str(known.get("origin", ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{note} does not say which model the adapter was trained on: it is damaged. Copy the adapter again."
        ) from None


def weights_of(folder: str | Path) -> Path:
    """Return the file of an adapter's weights.

    Raises:
        UserError: there is none.
    """
    names = ("adapter_model.safetensors", "adapter_model.bin")
    found = next((path for name in names if (path := Path(folder) / name).is_file()), None)
    if found is None:
        raise UserError(f"The adapter {folder} has no weights: there is no {' or '.join(names)}. Copy it again.")
    return found


def put_adapter(model: PreTrainedModel, folder: str | Path) -> Any:
    """Put an adapter on a model, in place.

    Returns:
        peft's wrapper, whose ``unload`` takes it off and ``merge_and_unload`` makes it part of the weights.

    Raises:
        UserError: it does not fit the model, or is damaged.
    """
    weights_of(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            given = load_peft_weights(str(folder), device="cpu")
            wrapped = peft.PeftModel.from_pretrained(model, str(folder))
            taken = get_peft_model_state_dict(wrapped)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # it is a stranger's: whatever peft stumbles over is in its files
        raise UserError(f"The adapter {folder} cannot be put on this model: {reason(error)}") from None
    if not hasattr(wrapped, "merge_and_unload"):
        raise UserError(
            f"The adapter {folder} is of the type {wrapped.active_peft_config.peft_type}, which cannot become part of "
            "weights. Give a LoRA adapter."
        )
    # peft leaves what the file lacks as it was drawn, and what the model lacks out, and only warns.
    wrong = sorted(given.keys() ^ taken.keys())
    if wrong:
        wrapped.unload()
        raise UserError(
            f"The adapter {folder} does not fit this model: {some(wrong)} of its weights are in one of them only. Give "
            "the model that it was trained on."
        )
    if broken := [name for name, weight in given.items() if not finite(weight)]:
        wrapped.unload()
        raise UserError(f"The adapter {folder} holds NaN or infinite numbers, in {some(broken)} of its weights.")
    return wrapped
