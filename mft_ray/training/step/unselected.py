"""Weights outside the selection of a mask or an adapter that a job holds in fewer bits: which, and what to say."""

from __future__ import annotations

from torch import nn

from mft_ray.config import ScalingConfig
from mft_ray.config.methods import MethodSpec
from mft_ray.config.training import UnselectedDtype
from mft_ray.errors import UserError
from mft_ray.masking import select
from mft_ray.models.quantized import Outside, QuantizedLinear, check_installed, outside
from mft_ray.training.job import TrainJob


def selected(job: TrainJob, model: nn.Module) -> set[str]:
    """Return the names of the weights that a job learns a mask or an adapter of.

    Args:
        job: of a mask or an adapter.
        model: or its structure.
    """
    asked = job.mask or job.lora
    assert asked is not None
    return {weight.name for weight in select(model, asked.layers, asked.target)}


def held_in_fewer_bits(job: TrainJob, model: nn.Module) -> Outside | None:
    """Return what a job holds in fewer bits; None where that is nothing.

    Args:
        job: of any method.
        model: or its structure; its weights may be held so already.
    """
    if job.unselected_dtype is None:
        return None
    found = outside(model, selected(job, model))
    return found if found.linear else None


def said_of(job: TrainJob, model: nn.Module) -> str:
    """Say what of a job's model is held in fewer bits, and what is not; nothing where none was to be.

    Args:
        job: of any method.
        model: with its weights held as they are to be.
    """
    if job.unselected_dtype is None:
        return ""
    found = outside(model, selected(job, model))
    others = (
        f"; {len(found.others)} other projections, {_millions(found.of_others)}, cannot be (experts in one tensor, "
        "tied or transposed weights)"
    )
    if not found.linear:
        where = "no linear weight lies outside the selection"
        return f"{where}, so that none is held in {job.unselected_dtype}{others if found.others else ''}"
    held = sum(isinstance(module, QuantizedLinear) for module in model.modules())
    assert held == len(found.linear), f"{held} layers are held in fewer bits, and {len(found.linear)} were to be"
    return (
        f"{held} linear weights outside the selection, {_millions(found.numbers)}, are held in {job.unselected_dtype}"
        f"{others if found.others else ''}"
    )


def check_unselected(held: UnselectedDtype | None, scaling: ScalingConfig, model: nn.Module) -> None:
    """Make sure that weights can be held in fewer bits.

    Args:
        held: how those outside a selection are to be held.
        scaling: of whoever learns a mask or an adapter.
        model: or its structure.

    Raises:
        UserError: they cannot.
    """
    if held is None:
        return
    check_installed()
    check_bits(held, scaling)
    found = outside(model, ())
    if not found.linear:
        raise UserError(
            f"model.unselected_dtype is {held}, and this model has no weight that can be held so: its "
            f"{len(found.others)} projections are no linear layers of torch (but Conv1D of GPT-2, Falcon's own, or "
            "experts in one tensor). Leave it out."
        )


def check_bits(held: UnselectedDtype | None, scaling: ScalingConfig) -> None:
    """Make sure that DeepSpeed leaves weights as they are held.

    Args:
        held: how those outside a selection are to be held.
        scaling: of whoever learns a mask or an adapter.

    Raises:
        UserError: at this ZeRO stage it does not.
    """
    if held is not None and scaling.zero_stage == 3:
        raise UserError(
            f"model.unselected_dtype is {held} and scaling.zero_stage 3, which shards weights between workers instead: "
            "codes and scales would have to be whole on each in the backward pass. Set zero_stage to 0, 1 or 2, or "
            "leave unselected_dtype out."
        )


def check_method(held: UnselectedDtype | None, method: MethodSpec) -> None:
    """Refuse a method that leaves nothing as it is.

    Args:
        held: how weights outside a selection are to be held.
        method: what is searched over, or trained once.

    Raises:
        UserError: it trains every weight.
    """
    if held is not None and method.makes == "tuned model":
        raise UserError(
            f"model.unselected_dtype is {held}, and {method.name} trains every weight: none lies outside a selection. "
            "Leave it out, or choose a method that learns a mask or an adapter."
        )


def _millions(numbers: int) -> str:
    return f"{numbers / 1e6:,.1f} million numbers"
