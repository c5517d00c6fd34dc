"""Rows of different lengths as one batch of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mft_ray.data.encoding import IGNORED

Side = Literal["left", "right"]


def collate(rows: Sequence[Mapping[str, Any]], pad_id: int, side: Side = "right") -> dict[str, Tensor]:
    """Pad rows of `encoding.encode` to the longest of them.

    Args:
        rows: at least one row with ``input_ids`` and ``labels``.
        pad_id: the token that fills `input_ids`; it may be one that also occurs in the text.
        side: where the padding goes.

    Returns:
        ``input_ids``, ``attention_mask`` (1 on tokens, 0 on padding) and ``labels`` (-100 on padding),
        each of shape (B, T) and dtype int64.

    Raises:
        ValueError: there are no rows.
    """
    batch = _padded([row["input_ids"] for row in rows], pad_id, side)
    labels = [torch.tensor(row["labels"], dtype=torch.long) for row in rows]
    batch["labels"] = pad_sequence(labels, batch_first=True, padding_value=IGNORED, padding_side=side)
    return batch


def pack(rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Put rows of `encoding.encode` one behind the other.

    Args:
        rows: at least one row with ``input_ids`` and ``labels``.

    Returns:
        ``input_ids``, ``position_ids`` (which start anew with each row, and so tell models where one begins) and
        ``labels`` (-100 at the beginning of each row, which nothing of its own predicts), each of shape (1, T) and
        dtype int64.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("a batch needs at least one row")
    tokens = [torch.tensor(row["input_ids"], dtype=torch.long) for row in rows]
    labels = [torch.tensor(row["labels"], dtype=torch.long) for row in rows]
    for each in labels:
        each[0] = IGNORED
    positions = [torch.arange(len(each)) for each in tokens]
    return {
        "input_ids": torch.cat(tokens)[None],
        "position_ids": torch.cat(positions)[None],
        "labels": torch.cat(labels)[None],
    }


def collate_prompts(rows: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, Tensor]:
    """Pad prompts on the left, so that generation goes on from each one's end.

    Args:
        rows: at least one row with ``prompt_ids``.
        pad_id: the token that fills `input_ids`.

    Returns:
        ``input_ids`` and ``attention_mask`` (1 on tokens, 0 on padding), each of shape (B, T) and int64.

    Raises:
        ValueError: there are no rows.
    """
    return _padded([row["prompt_ids"] for row in rows], pad_id, "left")


def _padded(sequences: Sequence[Sequence[int]], pad_id: int, side: Side) -> dict[str, Tensor]:
    if not sequences:
        raise ValueError("a batch needs at least one row")
    tokens = [torch.tensor(sequence, dtype=torch.long) for sequence in sequences]
    # From the lengths and not from the pad token, which is often the end-of-sequence token.
    present = [torch.ones(len(sequence), dtype=torch.long) for sequence in sequences]
    return {
        "input_ids": pad_sequence(tokens, batch_first=True, padding_value=pad_id, padding_side=side),
        "attention_mask": pad_sequence(present, batch_first=True, padding_value=0, padding_side=side),
    }
