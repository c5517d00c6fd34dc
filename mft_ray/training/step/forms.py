"""In what form the examples of a micro-batch reach a model: without waste, where that gives the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from mft_ray.data.collate import collate, pack
from mft_ray.training.step.agreement import UNFIT, agree

# Kernels of these compute nothing between the examples of a pack; others compute all of it, and then throw it away.
_VARIABLE_LENGTH = ("flash_attention_2", "flash_attention_3", "flash_attention_4")


class Form(StrEnum):
    """How examples lie in a batch.

    Attributes:
        PACKED: one behind the other in one row, with positions that start anew.
        PADDED: a row each, padded behind. What follows a token does not reach it, so that no mask is needed, and none
            is made or looked at: attention takes its fastest way.
        MASKED: a row each, padded behind, with a mask.
    """

    PACKED = "packed"
    PADDED = "padded"
    MASKED = "masked"


def arranged(rows: Sequence[Mapping[str, Any]], pad_id: int, form: Form) -> tuple[dict[str, Tensor], Tensor]:
    """Return what a model takes of some examples, and their labels, all on the CPU.

    Args:
        rows: ``input_ids`` and ``labels``.
        pad_id: token to pad with.
        form: how they lie.
    """
    batch = pack(rows) if form == Form.PACKED else collate(rows, pad_id)
    labels = batch.pop("labels")
    if form == Form.PADDED:
        del batch["attention_mask"]
    return batch, labels


def chosen(
    model: nn.Module,
    rows: Sequence[Mapping[str, Any]],
    pad_id: int,
    device: torch.device,
    packing: bool | None,
    forward: Callable[[dict[str, Tensor]], Tensor],
) -> tuple[Form, str]:
    """Return the form with the least waste in which a model gives what it gives for each example alone.

    Args:
        model: causal LM.
        rows: examples, of which two of different lengths are tried.
        pad_id: token to pad with.
        device: device of the model.
        packing: whether to pack; None: where attention computes nothing between examples.
        forward: gives the model's logits, (B, T, V), for its inputs.

    Returns:
        The form, and what there is to say where it is not what was asked for.
    """
    config: Any = model.config
    varlen = getattr(config, "_attn_implementation", None) in _VARIABLE_LENGTH
    wanted = [Form.PACKED] if (varlen if packing is None else packing) else []
    few = _of_different_lengths(rows)
    for form in [*wanted, Form.PADDED]:
        if _agrees(few, pad_id, form, device, forward):
            told = "micro-batches are padded: packed, this architecture gives other logits"
            return form, told if wanted and form != Form.PACKED else ""
    told = "micro-batches are padded and masked: in no other form does this architecture give the same logits"
    return Form.MASKED, told


def _of_different_lengths(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the shortest example, and the shortest that is longer, if there is one."""
    ordered = sorted(rows, key=lambda row: len(row["input_ids"]))
    longer = [row for row in ordered if len(row["input_ids"]) > len(ordered[0]["input_ids"])]
    return [ordered[0], *longer[:1]]


def _agrees(
    rows: Sequence[Mapping[str, Any]],
    pad_id: int,
    form: Form,
    device: torch.device,
    forward: Callable[[dict[str, Tensor]], Tensor],
) -> bool:
    def logits(some: Sequence[Mapping[str, Any]], form: Form) -> Tensor:
        inputs, _ = arranged(some, pad_id, form)
        return forward({name: tensor.to(device) for name, tensor in inputs.items()})

    alone = [logits([row], Form.MASKED)[0] for row in rows]
    try:
        together = logits(rows, form)
    except UNFIT:
        return False
    if form == Form.PACKED:
        found = list(torch.split(together[0], [len(each) for each in alone]))
    else:
        found = [row[: len(each)] for row, each in zip(together, alone, strict=True)]
    return all(agree(mine, theirs) for mine, theirs in zip(found, alone, strict=True))
