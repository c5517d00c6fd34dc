"""Frozen linear layers in 8 or 4 bits: a model of which only some weights are learned of, in less memory.

Codes are bitsandbytes': blocks of numbers that share a scale. A layer computes as one does whose weight is what its
codes stand for: that is unpacked for each product, one layer at a time, and again in the backward pass, which keeps the
codes alone. Activations are not rounded.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad
from transformers import PreTrainedModel

from mft_ray.config.training import UnselectedDtype
from mft_ray.errors import UserError
from mft_ray.masking import maskable
from mft_ray.masking.selection import Weight
from mft_ray.models.loading import load_model, load_to_train

# Numbers that share one fp32 scale: bitsandbytes' for 4 bits; for 8, as its optimizers have.
_BLOCKS: dict[UnselectedDtype, int] = {"int8": 256, "nf4": 64}
_BITS: dict[UnselectedDtype, int] = {"int8": 8, "nf4": 4}
_AT_ONCE = 2**20  # numbers that are packed at once on a CPU


def code_bytes(held: UnselectedDtype) -> float:
    """Return the bytes of a weight that is held so, its share of a scale included."""
    return _BITS[held] / 8 + 4 / _BLOCKS[held]


def check_installed() -> None:
    """Make sure that bitsandbytes is there.

    Raises:
        UserError: it is not.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "model.unselected_dtype needs bitsandbytes, which is not installed here. Install it on every node: "
            "pip install 'mft_ray[8bit]'. Or leave the setting out."
        )


class QuantizedLinear(nn.Linear):
    """A frozen linear layer whose weight is held as codes.

    Args:
        layer: the layer as it is.
        held: how its weight is to be held.
        device: where; the weight alone is brought there as it is.

    Attributes:
        codes: uint8 buffer, one or half a byte a weight. Neither it nor the scales are in a state_dict.
        scales: fp32 buffer, one for each block.
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, layer: nn.Linear, held: UnselectedDtype, device: torch.device) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.held = layer.in_features, layer.out_features, held
        self.dtype = layer.weight.dtype
        self.bias = layer.bias
        codes, scales = _packed(layer.weight.detach().to(device), held)
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        self.requires_grad_(False)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """What the codes stand for, made anew: for code that looks at a layer's weight itself."""
        return self.unpacked(self.dtype)

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """Return what the codes stand for, shape (out, in)."""
        return _unpacked(self.codes, self.scales, self.held, (self.out_features, self.in_features), dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Return the product, computed in autocast's dtype where that is on."""
        kind = input.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        product: Tensor = _Product.apply(input.to(dtype), self, bias)  # type: ignore[no-untyped-call]
        return product

    def extra_repr(self) -> str:
        """Say how the weight is held."""
        return f"{super().extra_repr()}, held={self.held}"


class _Product(torch.autograd.Function):
    """A linear layer of which the backward pass keeps nothing that is not there anyway."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: QuantizedLinear, bias: Tensor | None) -> Tensor:
        ctx.layer, ctx.dtype = layer, inputs.dtype
        return linear(inputs, layer.unpacked(inputs.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return gradient.to(ctx.dtype) @ ctx.layer.unpacked(ctx.dtype), None, None


@dataclass(frozen=True)
class Outside:
    """What of a model's decoder layers nothing is learned of.

    Attributes:
        linear: weights that can be held in fewer bits: of linear layers, used in no other place.
        numbers: how many numbers those are.
        largest: numbers of the largest of them.
        others: the rest: experts in one tensor, transposed layers as of GPT-2, tied weights.
        of_others: how many numbers those are.
    """

    linear: tuple[Weight, ...]
    numbers: int
    largest: int
    others: tuple[Weight, ...]
    of_others: int


def outside(model: nn.Module, selected: Collection[str]) -> Outside:
    """Look at what lies outside a selection.

    Embeddings, norms, the output head and what chooses experts are never held in fewer bits, and are not in it.

    Args:
        model: or its structure; some of its layers may be held in fewer bits already.
        selected: names of the weights that something is learned of.
    """
    rest = [weight for weight in maskable(model) if weight.layer is not None and weight.name not in selected]
    places: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        places[id(parameter)] = places.get(id(parameter), 0) + 1
    plain = tuple(weight for weight in rest if _can_be_held(model, weight, places))
    others = tuple(weight for weight in rest if weight not in plain)
    sizes = [shape_of(model, weight).numel() for weight in plain]
    of_others = sum(shape_of(model, weight).numel() for weight in others)
    return Outside(plain, sum(sizes), max(sizes, default=0), others, of_others)


def _can_be_held(model: nn.Module, weight: Weight, places: dict[int, int]) -> bool:
    module = model.get_submodule(weight.module)
    if isinstance(module, QuantizedLinear):
        return True
    return type(module) is nn.Linear and places[id(module.weight)] == 1


def shape_of(model: nn.Module, weight: Weight) -> torch.Size:
    """Return the shape of a weight, however it is held."""
    module = model.get_submodule(weight.module)
    if isinstance(module, QuantizedLinear):
        return torch.Size((module.out_features, module.in_features))
    return model.get_parameter(weight.name).shape


def numbers_of(model: nn.Module) -> int:
    """Return how many weights a model has, however they are held."""
    packed = sum(layer.out_features * layer.in_features for layer in _held(model))
    return packed + sum(parameter.numel() for parameter in model.parameters())


def bytes_of(model: nn.Module) -> float:
    """Return the bytes that a model's weights take as they are held."""
    packed = sum(layer.codes.nbytes + layer.scales.nbytes for layer in _held(model))
    return float(packed + sum(parameter.nbytes for parameter in model.parameters()))


def _held(model: nn.Module) -> Iterator[QuantizedLinear]:
    return (module for module in model.modules() if isinstance(module, QuantizedLinear))


class QuantizedModel:
    """A model whose linear layers outside a selection are held in fewer bits, for one selection after another.

    A layer is brought to the device and packed by itself: at no time is the whole model there as it is. Where ``dtype``
    is the checkpoint's, or float32, the host maps the file and holds no copy either.

    Args:
        path: local folder or hub id.
        dtype: ``float32`` or ``bfloat16``, of everything else.
        attention: transformers' attn_implementation; None lets transformers choose.
        held: how layers outside the selection are held.
        device: where the model is to be.
    """

    def __init__(
        self, path: str, dtype: str, attention: str | None, held: UnselectedDtype, device: torch.device
    ) -> None:
        check_installed()
        self._held, self._device = held, device
        # Weights in the checkpoint's dtype are the mapped file: they become fp32 one at a time.
        self._float = dtype == "float32"
        self._load: Callable[[], PreTrainedModel] = lambda: (
            load_to_train(path, attention) if self._float else load_model(path, dtype, attention)
        )
        self._model: PreTrainedModel | None = None

    def on(self, selected: Callable[[nn.Module], Collection[str]]) -> PreTrainedModel:
        """Return the model with all packed that can be but a selection, which is as the checkpoint has it.

        Args:
            selected: gives the names of the weights that are selected.
        """
        source = None
        if self._model is None:
            self._model = self._load()
        model = self._model
        rest = outside(model, selected(model))
        packed = {weight.module for weight in rest.linear}
        for weight in rest.linear:
            layer = model.get_submodule(weight.module)
            if type(layer) is nn.Linear:
                self._cast(layer)
                _put(model, weight.module, QuantizedLinear(layer, self._held, self._device))
        back = [name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)]
        for name in back:
            if name not in packed:
                source = source or self._load()
                _put(model, name, source.get_submodule(name))
        self._cast(model)
        moved: PreTrainedModel = model.to(self._device)  # type: ignore[arg-type]
        return moved

    def _cast(self, module: nn.Module) -> None:
        for parameter in module.parameters() if self._float else ():
            parameter.data = parameter.data.float()


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, layer.train(model.training).requires_grad_(False))


def _packed(weight: Tensor, held: UnselectedDtype) -> tuple[Tensor, Tensor]:
    """Return codes and scales of a weight."""
    from bitsandbytes import functional

    block = _BLOCKS[held]
    # A block a row: on a CPU bitsandbytes 0.50 unpacks rows of 4 bits wrongly that end within a block.
    rows = pad(weight.flatten(), (0, -weight.numel() % block)).view(-1, block)
    # And there it makes 16 numbers of each before it chooses: of a piece at a time they take little.
    pieces = torch.split(rows, _AT_ONCE // block) if rows.device.type == "cpu" else (rows,)
    if held == "nf4":
        made = [functional.quantize_4bit(piece, blocksize=block, quant_type="nf4") for piece in pieces]
    else:
        steps = _steps(rows.device)
        made = [functional.quantize_blockwise(piece, code=steps, blocksize=block) for piece in pieces]
    return torch.cat([codes.view(-1, 1) for codes, _ in made]), torch.cat([state.absmax for _, state in made])


def _unpacked(
    codes: Tensor, scales: Tensor, held: UnselectedDtype, shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """Return what codes stand for, of a shape, in a dtype."""
    from bitsandbytes import functional

    rows = torch.Size((len(scales), _BLOCKS[held]))
    its: dict[str, Any] = {"absmax": scales, "shape": rows, "blocksize": _BLOCKS[held], "dtype": dtype}
    if held == "nf4":
        numbers: Tensor = functional.dequantize_4bit(codes, functional.QuantState(quant_type="nf4", **its))
    else:
        state = functional.QuantState(code=_steps(codes.device), **its)
        numbers = functional.dequantize_blockwise(codes, state)
    return numbers.flatten()[: shape[0] * shape[1]].view(shape)


_STEPS: dict[torch.device, Tensor] = {}


def _steps(device: torch.device) -> Tensor:
    """Return what 8-bit codes stand for, of a scale: even steps, by which weights are rounded less than by others.

    bitsandbytes' own are close to each other near 0, as optimizers' states want it.
    """
    from bitsandbytes import functional

    if device not in _STEPS:
        _STEPS[device] = functional.create_linear_map(signed=True, total_bits=8).to(device)
    return _STEPS[device]
