"""The scores and the mask of one weight, as a parametrization of it."""

from __future__ import annotations

import torch
from torch import nn

from mft_ray.masking.straight_through import masked, softly_masked, straight_through


class WeightMask(nn.Module):
    """Turns W into W * M wherever the model uses W.

    Args:
        scores: first scores, fp32, of the weight's shape.
        origin: what a removed weight becomes; None is 0.
        cache: dtype to keep W * M in between updates; None computes it in every forward.
        signed: S itself decides, not |S|.

    Attributes:
        scores: trainable parameter.
        mask: bool buffer of the same shape, True keeps a weight. It changes only in `set`.
        removed: the removed weights, while the mask is merged into the model.
    """

    mask: torch.Tensor
    origin: torch.Tensor | None
    effective: torch.Tensor | None

    def __init__(
        self, scores: torch.Tensor, origin: torch.Tensor | None, cache: torch.dtype | None, signed: bool
    ) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores)
        self.removed: torch.Tensor | None = None
        self._cache, self._signed = cache, signed
        self._threshold = self._temperature = 0.0
        self.register_buffer("mask", torch.ones_like(scores, dtype=torch.bool), persistent=False)
        self.register_buffer("origin", origin, persistent=False)
        self.register_buffer("effective", None, persistent=False)

    @torch.no_grad()
    def set(self, mask: torch.Tensor, weight: torch.Tensor, threshold: float = 0.0, temperature: float = 0.0) -> None:
        """Put a new mask in force.

        Args:
            mask: bool, of the weight's shape.
            weight: the frozen weight; not looked at unless W * M is kept.
            threshold: the smallest |score| kept, for a soft mask.
            temperature: temperature of a soft mask; 0 is hard.
        """
        self.mask.copy_(mask)
        self._threshold, self._temperature = threshold, temperature
        if self._cache is None:
            return
        self.effective = masked(weight, self.mask, self.origin).to(self._cache)

    def forget(self) -> None:
        """Drop the copy of W * M."""
        self.effective = None

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the effective weight, of weight's shape."""
        if self._temperature and self.training:
            return softly_masked(self.scores, weight, self._threshold, self._temperature, self.origin)
        effective = masked(weight, self.mask, self.origin) if self.effective is None else self.effective
        return straight_through(self.scores, weight, effective, self.origin, self._signed)
