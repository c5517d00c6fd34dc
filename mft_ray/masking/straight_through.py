"""The masked weight, and the gradient that the scores get through it."""

from __future__ import annotations

from typing import Any

import torch

from mft_ray.masking.kernels import Kernel

# Integers of the width of a float: its bits.
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def masked(weight: torch.Tensor, mask: torch.Tensor, origin: torch.Tensor | None = None) -> torch.Tensor:
    """Return W * M with an exact (positive) zero wherever the mask is False.

    Args:
        weight: any float tensor.
        mask: bool, of weight's shape, True keeps.
        origin: what a removed weight becomes instead of 0: its value before fine-tuning.
    """
    if weight.is_cuda:
        return torch.where(mask, weight, weight.new_zeros(()) if origin is None else origin)
    # -1 in integers is all ones and 0 is none: bits are kept or cleared. Picking entries by a bool, as
    # masked_fill and where do, takes a CPU up to 14 times as long.
    bits, ones = weight.view(_BITS[weight.element_size()]), mask.view(torch.int8).neg()
    if origin is None:
        return (bits & ones).view(weight.dtype)
    others = origin.view(bits.dtype)
    return (others ^ ((bits ^ others) & ones)).view(weight.dtype)


class StraightThrough(torch.autograd.Function):
    """W * M forward; dL/dS = sign(S) * W * dL/d(W*M) backward, sign(0) = 1.

    Masked entries get gradient too, so that a weight can come back (MFT, arXiv 2503.22764, after
    edge-popup, arXiv 1911.13299). W * M is handed in: it changes only when the mask does, and is not computed
    again in every forward. Only tensors that exist anyway are saved.
    """

    @staticmethod
    def forward(
        ctx: Any,
        scores: torch.Tensor,
        weight: torch.Tensor,
        effective: torch.Tensor,
        origin: torch.Tensor | None,
        signed: bool,
    ) -> torch.Tensor:
        """Return the effective weight."""
        ctx.save_for_backward(scores, weight, origin)
        ctx.signed = signed
        return effective.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradient of the scores, in their dtype (fp32 even where W is bf16)."""
        scores, weight, origin = ctx.saved_tensors
        if scores.is_cuda:
            return _score_gradient(scores, gradients[0], weight, origin, ctx.signed), None, None, None, None
        removable = weight if origin is None else weight.to(scores.dtype) - origin
        gradient = gradients[0].to(scores.dtype) * removable
        if not ctx.signed:
            # Times 1 or -1, a byte each: where is many times slower on a CPU.
            gradient *= (scores < 0).view(torch.int8).mul_(-2).add_(1)
        return gradient, None, None, None, None


@Kernel
def _score_gradient(
    scores: torch.Tensor, gradient: torch.Tensor, weight: torch.Tensor, origin: torch.Tensor | None, signed: bool
) -> torch.Tensor:
    """Return what `StraightThrough.backward` does, in one expression."""
    removable = weight if origin is None else weight.to(scores.dtype) - origin
    product = gradient.to(scores.dtype) * removable
    return product if signed else torch.where(scores < 0, -product, product)


def straight_through(
    scores: torch.Tensor,
    weight: torch.Tensor,
    effective: torch.Tensor,
    origin: torch.Tensor | None = None,
    signed: bool = False,
) -> torch.Tensor:
    """Return the effective weight with the straight-through gradient to the scores.

    Args:
        scores: fp32, of weight's shape.
        weight: frozen, any float dtype.
        effective: W * M, of weight's shape.
        origin: what a removed weight becomes, if that is not 0.
        signed: the mask compares S itself and not |S| with its threshold: its gradient has no sign(S).
    """
    result: torch.Tensor = StraightThrough.apply(scores, weight, effective, origin, signed)  # type: ignore[no-untyped-call]
    return result


def softly_masked(
    scores: torch.Tensor,
    weight: torch.Tensor,
    threshold: float,
    temperature: float,
    origin: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return W * sigmoid((|S| - threshold) / temperature), with its true gradient to the scores.

    Args:
        scores: fp32, of weight's shape.
        weight: frozen, any float dtype.
        threshold: the smallest |S| that a hard mask would keep.
        temperature: above 0, in units of a score.
        origin: what a removed weight becomes, if that is not 0.
    """
    kept = torch.sigmoid((scores.abs() - threshold) / temperature).to(weight.dtype)
    # lerp is exact at both ends, which origin + (weight - origin) * kept is not.
    return weight * kept if origin is None else torch.lerp(origin, weight, kept)
