"""The masked weight, and the gradient that the scores get through it."""

from __future__ import annotations

from typing import Any

import torch


def masked(weight: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return W * M with an exact (positive) zero wherever the mask is False."""
    return weight.masked_fill(~mask, 0)


class StraightThrough(torch.autograd.Function):
    """W * M forward; dL/dS = sign(S) * W * dL/d(W*M) backward, sign(0) = 1.

    Masked entries get gradient too, so that a weight can come back (MFT, arXiv 2503.22764, after
    edge-popup, arXiv 1911.13299). Only the two tensors that exist anyway are saved.
    """

    @staticmethod
    def forward(ctx: Any, scores: torch.Tensor, weight: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the masked weight, of weight's shape and dtype."""
        ctx.save_for_backward(scores, weight)
        return masked(weight, mask)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Return the gradient of the scores, in their dtype (fp32 even where W is bf16)."""
        scores, weight = ctx.saved_tensors
        gradient = gradients[0].to(scores.dtype) * weight
        return torch.where(scores < 0, -gradient, gradient), None, None


def straight_through(scores: torch.Tensor, weight: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the masked weight with the straight-through gradient to the scores.

    Args:
        scores: fp32, of weight's shape.
        weight: frozen, any float dtype.
        mask: bool, of weight's shape.
    """
    result: torch.Tensor = StraightThrough.apply(scores, weight, mask)  # type: ignore[no-untyped-call]
    return result
