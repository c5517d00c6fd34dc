"""Which weights are masked: decoder layers, attention and MLP, found by structure and name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from torch import nn

from mft_ray.errors import UserError
from mft_ray.masking.settings import Target, parse_layers

# Names that transformers' causal LMs give the two halves of a decoder layer.
_HALVES = {
    "attn": re.compile(r"attn|attention", re.IGNORECASE),
    "mlp": re.compile(r"mlp|feed_forward|ffn|moe|expert", re.IGNORECASE),
}


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList] | None:
    """Return name and list of the decoder layers: the longest outermost list of linear-holding modules."""
    best: tuple[str, nn.ModuleList] | None = None
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or not len(module):
            continue
        if best is not None and name.startswith(best[0] + "."):
            continue  # experts inside a layer
        has_linear = any(is_linear(part) for part in module.modules())
        if has_linear and (best is None or len(module) > len(best[1])):
            best = (name, module)
    return best


def depth(model: nn.Module) -> int:
    """Return the number of decoder layers, 0 where the model has no list of them."""
    found = decoder_layers(model)
    return len(found[1]) if found else 0


def is_linear(module: nn.Module) -> bool:
    """Say whether a module is a linear layer with one weight matrix (GPT-2's Conv1D is one too)."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def select(
    model: nn.Module, layers: str = "all", target: Target = "both", modules: Sequence[str] | None = None
) -> list[str]:
    """Return the names of the linear modules to mask, in model order.

    Args:
        model: any module with linear layers.
        layers: layer group such as ``4-7``, or ``all``.
        target: ``attn``, ``mlp`` or ``both`` halves of each decoder layer.
        modules: take exactly these modules instead.

    Raises:
        UserError: the model lacks what was asked for; the message lists what it has.
    """
    if modules is not None:
        return _by_name(model, modules)
    found = decoder_layers(model)
    if found is None:
        if layers != "all" or target != "both":
            raise UserError(
                "This model has no list of decoder layers, so a layer group or target cannot be chosen. Give "
                f"the modules by name; it has these linear layers: {_listing(_linears(model))}."
            )
        names = list(_linears(model))
    else:
        stack, entries = found
        group = range(len(entries)) if layers == "all" else parse_layers(layers)
        if group[-1] >= len(entries):
            raise UserError(
                f"The layer group {layers} reaches beyond the model's {len(entries)} decoder layers "
                f"(0-{len(entries) - 1}). Choose a group within them."
            )
        names = [
            f"{stack}.{index}.{inner}"
            for index in group
            for inner in _linears(entries[index])
            if target == "both" or _HALVES[target].search(inner)
        ]
    if not names:
        raise UserError(
            f"No linear layer matches layers {layers}, target {target}. Give the modules by name; "
            f"the model has: {_listing(_linears(model))}."
        )
    return names


def _by_name(model: nn.Module, modules: Sequence[str]) -> list[str]:
    known = list(_linears(model))
    unknown = [name for name in modules if name not in known]
    if unknown or not modules:
        raise UserError(
            f"No linear layer is called {', '.join(unknown) or '(none given)'}; the model has: {_listing(known)}."
        )
    return list(modules)


def _linears(model: nn.Module) -> Iterator[str]:
    return (name for name, module in model.named_modules() if is_linear(module))


def _listing(names: Iterator[str] | Sequence[str]) -> str:
    """Collapse layer numbers, so that 32 layers read as one line."""
    patterns = dict.fromkeys(re.sub(r"\.\d+(?=\.)", ".*", name) for name in names)
    return ", ".join(patterns) or "none"
