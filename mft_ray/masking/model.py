"""Masks on a model: attach them, keep them up to date while scores train, merge them in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.utils import parametrize

from mft_ray.errors import UserError
from mft_ray.masking.init import initial_scores
from mft_ray.masking.schedule import full_ratio_reached, ratio_at
from mft_ray.masking.select import select
from mft_ray.masking.settings import MaskSettings
from mft_ray.masking.straight_through import masked, straight_through
from mft_ray.masking.topk import keep_mask

Gather = Callable[[nn.Parameter], AbstractContextManager[object]]


class WeightMask(nn.Module):
    """The scores and the mask of one weight; as a parametrization it turns W into W * M.

    Attributes:
        scores: trainable fp32 parameter of the weight's shape.
        mask: bool buffer of the same shape, True keeps a weight. It changes only in `Masks.update`.
    """

    mask: torch.Tensor

    def __init__(self, scores: torch.Tensor, ratio: float) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores)
        self.register_buffer("mask", keep_mask(scores, ratio), persistent=False)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the masked weight, of weight's shape and dtype."""
        return straight_through(self.scores, weight, self.mask)


class Masks:
    """The masks of one model.

    Freezes every parameter of the model and puts a `WeightMask` on each selected linear layer's weight.
    The model is changed in place and goes on working as before: forward and generate; state_dict has other
    names until `merge` or `detach`.

    Args:
        model: any module with linear layers.
        settings: what is masked, how much, and how scores start.
        seed: of random scores.
        modules: names of linear modules to mask instead of ``settings.layers`` and ``settings.target``.

    Raises:
        UserError: the model lacks what the settings ask for, or uses a weight to mask in another place too.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: MaskSettings | None = None,
        *,
        seed: int = 0,
        modules: Sequence[str] | None = None,
    ) -> None:
        self.model = model
        self.settings = settings or MaskSettings()
        self.progress = 0.0
        names = select(model, self.settings.layers, self.settings.target, modules)
        _refuse_tied(model, names)
        model.requires_grad_(False)
        self._masks: dict[str, WeightMask] = {}
        for name in names:
            module = model.get_submodule(name)
            weight = model.get_parameter(f"{name}.weight")
            scores = initial_scores(f"{name}.weight", weight, self.settings, seed)
            self._masks[f"{name}.weight"] = WeightMask(scores, self.ratio)
            parametrize.register_parametrization(module, "weight", self._masks[f"{name}.weight"])

    @property
    def ratio(self) -> float:
        """The masking ratio in force."""
        return ratio_at(self.settings, self.progress)

    @property
    def at_full_ratio(self) -> bool:
        """Whether the schedule has reached the ratio that was asked for."""
        return full_ratio_reached(self.settings, self.progress)

    def scores(self) -> list[nn.Parameter]:
        """Return the trainable scores, in model order: what an optimizer gets."""
        return [mask.scores for mask in self._masks.values()]

    def masks(self) -> dict[str, torch.Tensor]:
        """Return the mask in force by weight name: bool tensors, True keeps a weight. Not copies."""
        return {name: mask.mask for name, mask in self._masks.items()}

    def update(self, progress: float = 1.0, gather: Gather | None = None) -> None:
        """Recompute the masks from the scores. Call it after every optimizer step.

        Args:
            progress: fraction of training done, 0 to 1, for the ratio schedule.
            gather: makes one sharded parameter whole for a while (ZeRO-3); not needed otherwise.
        """
        self.progress = progress
        for mask in self._masks.values():
            with gather(mask.scores) if gather else nullcontext():
                mask.mask.copy_(keep_mask(mask.scores, self.ratio))

    def merge(self) -> nn.Module:
        """Take the masks off and leave W * M, bit for bit, in the model. Returns the model, still frozen."""
        for module in list(self._modules()):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
            module.weight.requires_grad_(False)
        self._masks = {}
        return self.model

    def detach(self) -> nn.Module:
        """Take the masks off and leave the backbone as it was. Returns the model, still frozen."""
        for module in list(self._modules()):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
        self._masks = {}
        return self.model

    def _modules(self) -> Iterator[nn.Module]:
        return (self.model.get_submodule(name.removesuffix(".weight")) for name in self._masks)


def _refuse_tied(model: nn.Module, names: Sequence[str]) -> None:
    """A mask on a weight that is, say, the embedding as well would change that when merged."""
    places: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), []).append(name)
    for name in names:
        found = places[id(model.get_parameter(f"{name}.weight"))]
        if len(found) > 1:
            raise UserError(
                f"The weight of {name} cannot be masked: it is tied, and a mask would change all of "
                f"{', '.join(found)}. Name other modules, or untie it first."
            )


@torch.no_grad()
def apply_masks(model: nn.Module, masks: dict[str, torch.Tensor]) -> nn.Module:
    """Overwrite the named weights of a plain model with W * M, bit for bit.

    Args:
        model: the model that the masks were learned on.
        masks: bool tensors by weight name.
    """
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        weight.copy_(masked(weight, mask.to(weight.device)))
    return model
