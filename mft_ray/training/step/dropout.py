"""Dropout for models that have none: of what each attention and MLP adds to the hidden state."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from mft_ray.errors import UserError
from mft_ray.masking import select


def add_dropout(model: nn.Module, probability: float) -> list[RemovableHandle]:
    """Drop entries of what sub-layers add to the hidden state while the model trains (arXiv 1706.03762, section 5.4).

    Args:
        model: with decoder layers.
        probability: probability of an entry; 0 adds nothing.

    Returns:
        Handles that take it off again.

    Raises:
        UserError: the model's attention and MLP cannot be told apart.
    """
    if not probability:
        return []

    def drop(module: nn.Module, inputs: Any, output: Any) -> Any:
        if not module.training:
            return None
        # Attention returns its weights as well.
        whole = output if isinstance(output, tuple) else (output,)
        dropped = (torch.nn.functional.dropout(whole[0], probability), *whole[1:])
        return dropped if isinstance(output, tuple) else dropped[0]

    halves = {_sub_layer(weight.module): weight for weight in select(model, "all", "both") if weight.half}
    if not halves:
        raise UserError("dropout is put behind attention and MLP, and this model has none that are known. Set it to 0.")
    return [model.get_submodule(name).register_forward_hook(drop) for name in halves]


def _sub_layer(module: str) -> str:
    """Return the child of the decoder layer that a projection is in: of layers.3.mlp.up_proj, layers.3.mlp."""
    parts = module.split(".")
    index = next(place for place, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[: index + 2])
