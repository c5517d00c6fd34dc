"""How scores start."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import nn

from mft_ray.errors import UserError
from mft_ray.masking.selection import Weight
from mft_ray.masking.settings import MaskSettings


def initial_scores(
    name: str, weight: torch.Tensor, settings: MaskSettings, seed: int, input_norm: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the first scores of one weight.

    The random numbers depend on the seed and the weight's name alone, so that they are the same on any
    number of workers, on any device, and whatever else is masked.

    Args:
        name: the weight's name in the model.
        weight: the frozen weight, or what of it the mask removes.
        settings: ``init`` and ``init_scale`` are used.
        seed: any integer.
        input_norm: for ``wanda``, of a shape that broadcasts to weight's; see `input_norms`.

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
    if settings.init == "zero":
        return torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
    if settings.init == "constant":
        return torch.full(weight.shape, settings.init_scale, dtype=torch.float32, device=weight.device)
    importance = weight.detach().float().abs()
    if input_norm is not None:
        importance = importance * input_norm
    return importance * (settings.init_scale / importance.mean().clamp_min(1e-30))


def input_norms(
    model: nn.Module, weights: Sequence[Weight], calibrate: Callable[[], object]
) -> dict[str, torch.Tensor]:
    """Measure how large each input feature of linear layers is, as Wanda does (arXiv 2306.11695).

    Args:
        model: to measure in, without masks.
        weights: weights of linear layers.
        calibrate: runs the model on a few batches.

    Returns:
        By weight name the L2 norm of each input feature over all tokens seen, fp32, of a shape that
        broadcasts to the weight's.

    Raises:
        UserError: a weight is not that of a linear layer, or calibration never reached one.
    """
    squares: dict[str, torch.Tensor] = {}

    def measure(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            tokens = inputs[0].detach().float()
            square = tokens.reshape(-1, tokens.shape[-1]).square().sum(0)
            squares[name] = squares[name] + square if name in squares else square

        return hook

    hooks = [
        model.get_submodule(weight.module).register_forward_pre_hook(measure(weight.name))
        for weight in weights
        if weight.parameter == "weight" and model.get_parameter(weight.name).dim() == 2
    ]
    try:
        with torch.no_grad():
            calibrate()
    finally:
        for hook in hooks:
            hook.remove()
    if missing := [weight.name for weight in weights if weight.name not in squares]:
        raise UserError(
            f"init wanda needs the inputs of linear layers, and {missing[0]} ({len(missing)} in all) has shown none: "
            "it is not a plain linear layer, or the calibration batches never reached it. Use init magnitude."
        )
    return {
        weight.name: squares[weight.name].sqrt().unsqueeze(-1 if weight.input_dim == 0 else 0) for weight in weights
    }


def _seed_of(name: str, seed: int) -> int:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
