"""Which weights are masked: the projections of decoder layers, found by structure and name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from mft_ray.errors import UserError
from mft_ray.masking.settings import Target, parse_layers

Half = Literal["attn", "mlp"]

# Names that transformers' causal LMs give the two halves of a decoder layer, and the switch between experts.
_HALVES: dict[Half, re.Pattern[str]] = {
    "attn": re.compile(r"attn|attention", re.IGNORECASE),
    "mlp": re.compile(r"mlp|feed_?forward|ffn|moe|expert|(^|\.)(fc|dense_)", re.IGNORECASE),
}
_ROUTER = re.compile(r"(gate|router)$", re.IGNORECASE)
_EXPERTS = re.compile(r"expert", re.IGNORECASE)


@dataclass(frozen=True)
class Weight:
    """A weight that can be masked.

    Attributes:
        name: name of the parameter in the model.
        layer: number of its decoder layer; None in a model without a list of them.
        half: half of the decoder layer; None where the name does not say.
        input_dim: the dimension that is summed over when the weight meets its input.
    """

    name: str
    layer: int | None
    half: Half | None
    input_dim: int

    @property
    def module(self) -> str:
        """Name of the module that holds it."""
        return self.name.rpartition(".")[0]

    @property
    def parameter(self) -> str:
        """What that module calls it."""
        return self.name.rpartition(".")[2]


def select(
    model: nn.Module, layers: str = "all", target: Target = "both", names: Sequence[str] | None = None
) -> list[Weight]:
    """Return the weights to mask, in model order.

    Args:
        model: any module with linear layers.
        layers: layer group such as ``4-7``, or ``all``.
        target: ``attn``, ``mlp`` or ``both`` halves of each decoder layer.
        names: take exactly these instead: modules, or parameters.

    Raises:
        UserError: the model lacks what was asked for; the message lists what it has.
    """
    known = list(maskable(model))
    if names is not None:
        return _by_name(known, names)
    in_layers = [weight for weight in known if weight.layer is not None]
    if not in_layers:
        if layers != "all" or target != "both":
            raise UserError(
                "This model has no list of decoder layers, so a layer group or target cannot be chosen. Give "
                f"the modules by name; it has these linear layers: {_listing(known)}."
            )
        chosen = known
    else:
        group = range(depth(model)) if layers == "all" else parse_layers(layers)
        if group[-1] >= depth(model):
            raise UserError(
                f"The layer group {layers} reaches beyond the model's {depth(model)} decoder layers "
                f"(0-{depth(model) - 1}). Choose a group within them."
            )
        chosen = [weight for weight in in_layers if weight.layer in group and target in ("both", weight.half)]
    if not chosen:
        raise UserError(
            f"No linear layer matches layers {layers}, target {target}. Give the modules by name; "
            f"the model has: {_listing(known)}."
        )
    return chosen


def maskable(model: nn.Module) -> Iterator[Weight]:
    """Yield every weight that could be masked, in model order: linear layers and stacked experts.

    Routers, which choose among experts, are left out: they are no projections.
    """
    found = decoder_layers(model)
    stack = f"{found[0]}." if found else None
    routers: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if _is_router(model, name):
            routers += (f"{name}.",)
        if f"{name}.".startswith(routers):
            continue
        for parameter, dim in _projections(module):
            full = f"{name}.{parameter}" if name else parameter
            inner = full.removeprefix(stack) if stack and full.startswith(stack) else None
            layer, _, path = inner.partition(".") if inner is not None else ("", "", full)
            yield Weight(full, int(layer) if layer else None, _half(path), dim)


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList] | None:
    """Return name and list of the decoder layers: the longest outermost list of linear-holding modules."""
    best: tuple[str, nn.ModuleList] | None = None
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or not len(module):
            continue
        if best is not None and name.startswith(best[0] + "."):
            continue  # experts inside a layer
        has_linear = any(True for part in module.modules() for _ in _projections(part))
        if has_linear and (best is None or len(module) > len(best[1])):
            best = (name, module)
    return best


def depth(model: nn.Module) -> int:
    """Return the number of decoder layers, 0 where the model has no list of them."""
    found = decoder_layers(model)
    return len(found[1]) if found else 0


def _projections(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Yield the module's own projection weights, each with the dimension that its input is summed over."""
    if isinstance(module, nn.Linear):
        yield "weight", 1
    elif type(module).__name__ == "Conv1D":  # GPT-2's: a linear layer with its weight transposed
        yield "weight", 0
    elif _EXPERTS.search(type(module).__name__):
        # All experts of a layer in one parameter: (experts, out, in), transposed in some models.
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() >= 2 and "bias" not in name:
                yield name, parameter.dim() - (2 if _is_transposed(module) else 1)


def _is_transposed(experts: nn.Module) -> bool:
    # Most models that transpose say so; Llama 4 does not.
    return getattr(experts, "is_transposed", False) or type(experts).__name__ == "Llama4TextExperts"


def _is_router(model: nn.Module, name: str) -> bool:
    """Say whether the module is called one and stands beside what it would choose among."""
    parent, _, own = name.rpartition(".")
    if not _ROUTER.search(own):
        return False
    beside = model.get_submodule(parent).named_children()
    return any(_EXPERTS.search(child) or _EXPERTS.search(type(module).__name__) for child, module in beside)


def _half(path: str) -> Half | None:
    return next((half for half, pattern in _HALVES.items() if pattern.search(path)), None)


def _by_name(known: Sequence[Weight], names: Sequence[str]) -> list[Weight]:
    wanted = set(names)
    chosen = [weight for weight in known if wanted & {weight.name, weight.module}]
    unknown = wanted - {name for weight in chosen for name in (weight.name, weight.module)}
    if unknown or not chosen:
        raise UserError(
            f"No linear layer is called {', '.join(sorted(unknown)) or '(none given)'}; "
            f"the model has: {_listing(known)}."
        )
    return chosen


def _listing(weights: Sequence[Weight]) -> str:
    """Collapse layer numbers, so that 32 layers read as one line."""
    patterns = dict.fromkeys(re.sub(r"\.\d+(?=\.)", ".*", weight.name.removesuffix(".weight")) for weight in weights)
    return ", ".join(patterns) or "none"
