"""Masks on a model: attach them, keep them up to date while scores train, merge them in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from mft_ray.errors import UserError
from mft_ray.masking.init import initial_scores, input_norms
from mft_ray.masking.ranking import make_all_masks, ranked_together
from mft_ray.masking.schedule import full_ratio_reached, share_at, temperature_at
from mft_ray.masking.selection import Weight, select
from mft_ray.masking.settings import MaskSettings, parse_pattern
from mft_ray.masking.straight_through import masked
from mft_ray.masking.weight import WeightMask

Gather = Callable[[list[nn.Parameter]], AbstractContextManager[object]]


class Masks:
    """The masks of one model.

    Freezes every parameter of the model and puts a `WeightMask` on each selected weight. The model is changed
    in place and goes on working as before: forward, backward, generate; state_dict has other names until the
    masks are merged or unloaded.

    Args:
        model: any module with linear layers.
        settings: what is masked, how much, and how scores start.
        seed: seed of random scores.
        modules: names of modules or parameters to mask instead of ``settings.layers`` and ``settings.target``.
        before: with ``removes: delta``, the model's weights before fine-tuning, by name.
        calibrate: with ``init: wanda``, runs the model on a few batches.
        cache: keep W * M from update to update instead of computing it in every forward: worth one more copy of the
            selected weights where a step takes several forwards. A dtype keeps it in that one (bfloat16 under
            autocast saves the cast as well).

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
        before: Mapping[str, torch.Tensor] | None = None,
        calibrate: Callable[[], object] | None = None,
        cache: bool | torch.dtype = False,
    ) -> None:
        self.model = model
        self.settings = settings or MaskSettings()
        self.progress = 0.0
        self.weights = select(model, self.settings.layers, self.settings.target, modules)
        _refuse_packed(model, self.weights)
        _refuse_tied(model, self.weights)
        _check_pattern(model, self.weights, self.settings)
        origins = _origins(model, self.weights, self.settings, before)
        norms = self._input_norms(calibrate)
        model.requires_grad_(False)
        self._masks: dict[str, WeightMask] = {}
        for weight in self.weights:
            value, origin = model.get_parameter(weight.name), origins.get(weight.name)
            removable = value if origin is None else value - origin
            scores = initial_scores(weight.name, removable, self.settings, seed, norms.get(weight.name))
            dtype = value.dtype if cache is True else cache or None
            self._masks[weight.name] = WeightMask(scores, origin, dtype, signed=self.settings.signed)
        self._groups = ranked_together(self.weights, self.settings)
        self._hooks: list[RemovableHandle] = []
        self.attach()

    @property
    def share(self) -> float:
        """The share of the full masking ratio that the schedule has reached, 0 to 1."""
        return share_at(self.settings, self.progress)

    @property
    def ratio(self) -> float:
        """The masking ratio in force: the fraction of all selected weights that is removed now."""
        masks = self.masks().values()
        return sum(int((~mask).sum()) for mask in masks) / max(1, sum(mask.numel() for mask in masks))

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
            gather: makes sharded parameters whole for a while (ZeRO-3); not needed otherwise.
        """
        self.progress = progress
        temperature = temperature_at(self.settings, progress) if self.settings.hardness == "soft" else 0.0
        # What is sharded is made whole a group at a time, and only a GPU gains by having several at once.
        apart = gather is not None or not any(scores.is_cuda for scores in self.scores())
        for groups in [[group] for group in self._groups] if apart else [self._groups]:
            scores = {weight.name: self._masks[weight.name].scores for group in groups for weight in group}
            with gather(list(scores.values())) if gather else nullcontext():
                values = {name: score.detach() for name, score in scores.items()}
                made = make_all_masks(groups, values, self.settings, self.share)
                soften = [0.0] * len(groups)
                if temperature:
                    ranked = [[values[weight.name] for weight in group] for group in groups]
                    soften = [_smallest_kept(*pair) for pair in zip(ranked, made, strict=True)]
            for group, masks, threshold in zip(groups, made, soften, strict=True):
                for weight, mask in zip(group, masks, strict=True):
                    self._masks[weight.name].set(mask, self._frozen(weight), threshold, temperature)

    def put(self, masks: Mapping[str, torch.Tensor]) -> None:
        """Put given masks in force until the next `update`; the scores stay as they are.

        Args:
            masks: bool, by weight name, True keeps a weight.
        """
        for weight in self.weights:
            self._masks[weight.name].set(masks[weight.name], self._frozen(weight))

    def attach(self) -> None:
        """Put the masks on the model, as is done at the start, after `unload`."""
        for weight in self.weights:
            module, parameter = self._place(weight)
            # unsafe: W * M may be kept in another dtype than W.
            parametrize.register_parametrization(module, parameter, self._masks[weight.name], unsafe=True)
            if parameter != "weight":
                self._hooks += _masked_once_per_forward(module)
        self.update(self.progress)

    def unload(self) -> nn.Module:
        """Take the masks off and leave the backbone as it was. Returns the model, still frozen."""
        for weight in self.weights:
            self._masks[weight.name].forget()
            parametrize.remove_parametrizations(*self._place(weight), leave_parametrized=False)
        while self._hooks:
            self._hooks.pop().remove()
        return self.model

    def merge(self) -> nn.Module:
        """Leave W * M, bit for bit, in the model as plain weights. Returns the model, still frozen.

        What was removed is kept, at the cost of the removed weights' memory, so that `unmerge` can undo it.
        """
        self.unload()
        for weight in self.weights:
            member = self._masks[weight.name]
            value = self.model.get_parameter(weight.name)
            member.removed = value.detach()[~member.mask]
            with torch.no_grad():
                value.copy_(masked(value, member.mask, member.origin))
        return self.model

    def unmerge(self) -> nn.Module:
        """Undo `merge`: the backbone is as it was, bit for bit, and the masks are on it again. Returns the model."""
        for weight in self.weights:
            member = self._masks[weight.name]
            if member.removed is None:
                raise UserError("The masks are not merged, so there is nothing to unmerge.")
            with torch.no_grad():
                self.model.get_parameter(weight.name)[~member.mask] = member.removed
            member.removed = None
        self.attach()
        return self.model

    def merge_and_unload(self) -> nn.Module:
        """As `merge`, for good: scores and removed weights are dropped. Returns the model, still frozen."""
        self.merge()
        self.weights, self._groups, self._masks = [], [], {}
        return self.model

    def _frozen(self, weight: Weight) -> torch.Tensor:
        module, parameter = self._place(weight)
        original: torch.Tensor = module.parametrizations[parameter].original  # type: ignore[union-attr,index]
        return original

    def _place(self, weight: Weight) -> tuple[nn.Module, str]:
        return self.model.get_submodule(weight.module), weight.parameter

    def _input_norms(self, calibrate: Callable[[], object] | None) -> dict[str, torch.Tensor]:
        if self.settings.init != "wanda":
            return {}
        if calibrate is None:
            raise UserError("init wanda needs calibration: give Masks(calibrate=...), which runs a few batches.")
        return input_norms(self.model, self.weights, calibrate)


def _masked_once_per_forward(module: nn.Module) -> list[RemovableHandle]:
    """Share one W * M among all uses within a forward: experts read their stacked weight once each."""
    entered: list[AbstractContextManager[None]] = []

    def enter(*_: object) -> None:
        entered.append(parametrize.cached())
        entered[-1].__enter__()

    def leave(*_: object) -> None:
        entered.pop().__exit__(None, None, None)

    return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]


def _smallest_kept(scores: Iterable[torch.Tensor], masks: Sequence[torch.Tensor]) -> float:
    """Return where a soft mask is half open; where nothing is removed, nothing is to be half open."""
    if all(bool(mask.all()) for mask in masks):
        return -math.inf
    kept = [float(score.abs()[mask].min()) for score, mask in zip(scores, masks, strict=True) if bool(mask.any())]
    return min(kept)


def _refuse_packed(model: nn.Module, weights: Sequence[Weight]) -> None:
    """A mask belongs to weights as their checkpoint has them: of codes in fewer bits none could be switched off."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for weight in weights:
        value, module = parameters.get(weight.name), model.get_submodule(weight.module)
        plain = value is not None and value.is_floating_point()
        if not plain and not parametrize.is_parametrized(module, weight.parameter):
            raise UserError(
                f"The weight of {weight.module} cannot be masked: it is quantized, and a mask belongs to weights as "
                "the checkpoint has them. Load the layers that are selected as they are, or select others."
            )


def _refuse_tied(model: nn.Module, weights: Sequence[Weight]) -> None:
    """A mask on a weight that is, say, the embedding as well would change that when merged."""
    places: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), []).append(name)
    for weight in weights:
        found = places[id(model.get_parameter(weight.name))]
        if len(found) > 1:
            raise UserError(
                f"The weight of {weight.module} cannot be masked: it is tied, and a mask would change all of "
                f"{', '.join(found)}. Name other modules, or untie it first."
            )


def _check_pattern(model: nn.Module, weights: Sequence[Weight], settings: MaskSettings) -> None:
    if settings.pattern is None:
        return
    _, of = parse_pattern(settings.pattern)
    for weight in weights:
        inputs = model.get_parameter(weight.name).shape[weight.input_dim]
        if inputs % of:
            raise UserError(
                f"The mask pattern {settings.pattern} needs inputs in multiples of {of}, but {weight.module} has "
                f"{inputs}. Choose other layers or another pattern."
            )


def _origins(
    model: nn.Module,
    weights: Sequence[Weight],
    settings: MaskSettings,
    before: Mapping[str, torch.Tensor] | None,
) -> dict[str, torch.Tensor]:
    """Return what removed weights become, where that is not 0, in the weights' dtype and place."""
    if settings.removes == "weight":
        return {}
    if before is None:
        raise UserError("removes delta needs the model before fine-tuning: give Masks(before=its weights by name).")
    origins = {}
    for weight in weights:
        value, origin = model.get_parameter(weight.name), before.get(weight.name)
        if origin is None or origin.shape != value.shape:
            given = "none" if origin is None else f"one of shape {tuple(origin.shape)}"
            raise UserError(
                f"The model before fine-tuning must have a weight {weight.name} of shape {tuple(value.shape)}; it has "
                f"{given}. Give the checkpoint that fine-tuning started from."
            )
        origins[weight.name] = origin.detach().to(value.device, value.dtype)
    return origins


@torch.no_grad()
def apply_masks(
    model: nn.Module, masks: Mapping[str, torch.Tensor], before: Mapping[str, torch.Tensor] | None = None
) -> nn.Module:
    """Overwrite the named weights of a plain model with W * M, bit for bit.

    Args:
        model: the model that the masks were learned on.
        masks: bool tensors by weight name.
        before: what removed weights become instead of 0, by weight name.

    Raises:
        UserError: see `check_fits`.
    """
    check_fits(model, masks, before or None)
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        origin = before[name].to(weight.device, weight.dtype) if before else None
        weight.copy_(masked(weight, mask.to(weight.device), origin))
    return model


def check_fits(
    model: nn.Module,
    masks: Mapping[str, torch.Tensor],
    before: Mapping[str, torch.Tensor] | None = None,
    source: str = "",
) -> None:
    """Refuse masks that are not of this model's weights, one bit for each.

    Args:
        model: that they would be put on.
        masks: by weight name.
        before: what removed weights would become, by weight name.
        source: the file that they were read from.

    Raises:
        UserError: naming the first weight that does not fit.
    """
    weights = dict(model.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        weight = weights.get(name)
        wrong = None
        if weight is None:
            wrong = f"names {name}, which the model has not"
        elif mask.dtype != torch.bool:
            wrong = f"is of {mask.dtype} for {name}, not of bits"
        elif mask.shape != weight.shape:
            wrong = f"has the shape {list(mask.shape)} for {name}, which has {list(weight.shape)}"
        elif before is not None and (name not in before or before[name].shape != weight.shape):
            wrong = f"takes {name} back to what it was before fine-tuning, and that model has none of its shape"
        if wrong:
            file = f"mask file {source}" if source else "mask"
            raise UserError(f"The {file} {wrong}. Give the mask and the model that it was learned on.")
