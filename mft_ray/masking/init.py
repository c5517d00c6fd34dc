"""How scores start."""

from __future__ import annotations

import hashlib

import torch

from mft_ray.masking.settings import MaskSettings


def initial_scores(name: str, weight: torch.Tensor, settings: MaskSettings, seed: int) -> torch.Tensor:
    """Return the first scores of one weight.

    The random numbers depend on the seed and the weight's name alone, so that they are the same on any
    number of workers, on any device, and whatever else is masked.

    Args:
        name: the weight's name in the model.
        weight: the frozen weight.
        settings: ``init`` and ``init_scale`` are used.
        seed: any integer.

    Returns:
        A fp32 tensor of weight's shape on its device.
    """
    if settings.init == "normal":
        generator = torch.Generator().manual_seed(_seed_of(name, seed))
        # Spelt out, for a caller may have set another default dtype or device.
        scores = torch.empty(weight.shape, dtype=torch.float32, device="cpu").normal_(
            0.0, settings.init_scale, generator=generator
        )
        return scores.to(weight.device)
    if settings.init == "magnitude":
        magnitude = weight.detach().float().abs()
        return magnitude * (settings.init_scale / magnitude.mean().clamp_min(1e-30))
    return torch.full(weight.shape, settings.init_scale, dtype=torch.float32, device=weight.device)


def _seed_of(name: str, seed: int) -> int:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
