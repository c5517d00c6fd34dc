"""Optimizers of what is trained, and what each asks for."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import torch
from torch import nn

from mft_ray.config import ScalingConfig, TrainConfig
from mft_ray.errors import UserError

# Numbers that share one scale in an 8-bit state, and tensors that are so small that their states stay fp32
# (bitsandbytes).
_BLOCK, _SMALL = 256, 4096


def check_installed(train: TrainConfig) -> None:
    """Make sure that an optimizer's package is there.

    Raises:
        UserError: it is not.
    """
    if train.optimizer == "adamw_8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "optimizer adamw_8bit needs bitsandbytes, which is not installed here. Install it on every node: "
            "pip install 'mft_ray[8bit]'. Or use adamw."
        )


def check_stage(train: TrainConfig, scaling: ScalingConfig) -> None:
    """Make sure that DeepSpeed leaves what is trained as it is asked to be held.

    Raises:
        UserError: at this ZeRO stage it does not.
    """
    if train.dtype == "bfloat16" and scaling.zero_stage:
        raise UserError(
            f"train.dtype is bfloat16 and scaling.zero_stage {scaling.zero_stage}, at which DeepSpeed keeps an fp32 "
            "copy of what is trained, so that nothing would be saved. Set zero_stage to 0, or dtype to float32."
        )


def build_optimizer(parameters: list[nn.Parameter], train: TrainConfig) -> torch.optim.Optimizer:
    """Return an optimizer that needs no compiler on the workers, as DeepSpeed's own do."""
    lr, decay = train.lr, train.weight_decay
    # One pass over memory where torch has that; what it prefers on a GPU (foreach) copies all parameters for a while.
    if train.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=lr, alpha=train.betas[1], weight_decay=decay, foreach=False)
    if train.optimizer == "adamw_8bit":
        return _adamw_8bit(parameters, train)
    return torch.optim.AdamW(parameters, lr=lr, betas=train.betas, weight_decay=decay, fused=True)


def lr_factor(train: TrainConfig, step: int) -> float:
    """Return the learning rate of a step (from 0) as a fraction of ``train.lr``: warmup, then decay to 0."""
    warmup = math.ceil(train.warmup * train.steps)
    if step < warmup:
        return (step + 1) / warmup
    if train.schedule == "constant":
        return 1.0
    left = max(train.steps - step, 0) / max(train.steps - warmup, 1)
    return left if train.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))


def state_bytes(train: TrainConfig) -> float:
    """Return how many bytes an optimizer keeps for each number that it changes.

    Args:
        train: names the optimizer.
    """
    return {"adamw": 8.0, "adamw_8bit": 2 * (1 + 4 / _BLOCK), "rmsprop": 4.0}[train.optimizer]


def trained_bytes(train: TrainConfig) -> int:
    """Return the bytes of each number that is trained, and of its gradient."""
    return 2 if train.dtype == "bfloat16" else 4


def _adamw_8bit(parameters: list[nn.Parameter], train: TrainConfig) -> torch.optim.Optimizer:
    from bitsandbytes.optim import AdamW8bit

    class StochasticAdamW8bit(AdamW8bit):  # type: ignore[misc]
        """AdamW of 8-bit states (arXiv 2110.02861) whose bfloat16 parameters are rounded up or down by chance.

        The nearest bfloat16 of a number and a small change of it is the number itself: late in training nothing would
        change. Chance depends on the step and the parameter alone, so that workers agree and a run can go on.
        """

        @torch.no_grad()
        def update_step(self, group: dict[str, Any], p: nn.Parameter, gindex: int, pindex: int) -> None:
            """Change one parameter."""
            if p.dtype != torch.bfloat16:
                super().update_step(group, p, gindex, pindex)
                return
            whole = nn.Parameter(p.detach().float())
            whole.grad = p.grad.float()  # type: ignore[union-attr]
            self.state[whole] = self.state[p]  # the same dictionary
            super().update_step(group, whole, gindex, pindex)
            del self.state[whole]
            generator = torch.Generator(p.device).manual_seed(hash((train.seed, self.state[p]["step"], gindex, pindex)))
            p.copy_(stochastically_rounded(whole, generator))

    return StochasticAdamW8bit(
        parameters, lr=train.lr, betas=train.betas, weight_decay=train.weight_decay, min_8bit_size=_SMALL
    )


def stochastically_rounded(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return numbers as bfloat16, rounded up or down with such chances that nothing is lost on average.

    Args:
        values: fp32.
        generator: on their device.
    """
    # The upper half of an fp32's bits is a bfloat16; the lower half says how far it is to the next one.
    chance = torch.randint(0, 2**16, values.shape, generator=generator, dtype=torch.int32, device=values.device)
    bits = values.detach().view(torch.int32)
    return ((bits + chance) & -(2**16)).view(torch.float32).to(torch.bfloat16)
