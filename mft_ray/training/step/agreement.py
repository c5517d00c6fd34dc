"""Whether a model says the same in two ways: what is gained by one of them must change nothing."""

from __future__ import annotations

import torch
from torch import Tensor

# Of logits, where both ways compute the same but may sum in another order.
_CLOSE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}

# What a model raises that cannot be run in some way.
UNFIT = (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError)


def agree(mine: Tensor, theirs: Tensor, scale: float | None = None) -> bool:
    """Say whether logits are the same, to what rounding in their dtype allows.

    Args:
        mine: logits of one way.
        theirs: logits of the other.
        scale: what a difference is measured by; None takes the largest of ``theirs``.
    """
    if mine.shape != theirs.shape:
        return False
    scale = max(float(theirs.abs().max()), 1e-6) if scale is None else scale
    return float((mine - theirs).abs().max()) <= _CLOSE.get(mine.dtype, _CLOSE[torch.bfloat16]) * scale
