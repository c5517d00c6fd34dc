"""What a training step keeps for its backward pass, and its operations, counted on tensors that have no content.

The model is run as it is, layer by layer and with its own attention's shapes, but nothing is computed or allocated, so
that a model of any size takes some seconds and no memory.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, PreTrainedConfig
from transformers.utils import logging as transformers_logging

from mft_ray.masking import decoder_layers
from mft_ray.training.step.agreement import UNFIT
from mft_ray.training.step.flops import Flops

_ATTENTION = "mft_ray_counted"


@dataclass(frozen=True)
class Counted:
    """A forward and backward pass over one example.

    Attributes:
        layers: bytes that each decoder layer keeps of a token for the backward pass.
        outside: bytes kept of a token outside of all layers.
        casts: bytes of weights that autocast has made copies of, and keeps for the backward pass.
        forward: floating-point operations of the forward pass up to the last hidden states.
        backward: those of the backward pass from there.
        head: those of forward and backward pass of the output head.
    """

    layers: tuple[float, ...]
    outside: float
    casts: float
    forward: float
    backward: float
    head: float


class Counter:
    """Counts passes through one model, each once.

    Args:
        config: configuration of a causal LM.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        self._config = config
        self._known: dict[tuple[object, ...], Counted | None] = {}

    def count(
        self,
        trained: Collection[str] | None,
        tokens: int,
        answers: int,
        *,
        dtype: torch.dtype,
        autocast: torch.dtype | None,
    ) -> Counted | None:
        """Count a training step's pass over one example.

        Args:
            trained: names of the weights that get a gradient; None: all.
            tokens: tokens of the example.
            answers: positions of it that have logits.
            dtype: dtype of the weights.
            autocast: dtype that products are computed in; None: the weights' own.

        Returns:
            None where an architecture cannot be run without content, such as one whose tokens choose their experts.
        """
        key = (None if trained is None else frozenset(trained), tokens, answers, dtype, autocast)
        if key not in self._known:
            self._known[key] = self._count(trained, tokens, answers, dtype, autocast)
        return self._known[key]

    def _count(
        self,
        trained: Collection[str] | None,
        tokens: int,
        answers: int,
        dtype: torch.dtype,
        autocast: torch.dtype | None,
    ) -> Counted | None:
        transformers_logging.set_verbosity_error()
        _register()
        try:
            with FakeTensorMode():
                model = AutoModelForCausalLM.from_config(self._config, dtype=dtype, attn_implementation=_ATTENTION)
                return _counted(model.train(), trained, tokens, answers, autocast)
        except (*UNFIT, NotImplementedError, ImportError):
            return None


def _counted(
    model: Any, trained: Collection[str] | None, tokens: int, answers: int, autocast: torch.dtype | None
) -> Counted:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained is None or name in trained)
    head, flops = model.get_output_embeddings(), Flops()
    ids = torch.zeros((1, tokens), dtype=torch.long)
    with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
        with _Kept(model) as kept, flops.counted("forward", 1, tokens):
            hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        forward = flops.total
        with flops.counted("head", 1, answers):
            picked = hidden.detach()[0, :answers].requires_grad_()
            head(picked).sum().backward()
        through = flops.total
        if hidden.requires_grad:
            with flops.counted("backward", 1, tokens):
                hidden.sum().backward()
    layers = tuple(size / tokens for size in kept.sizes[:-1])
    head_alone, backward = through - forward, flops.total - through
    return Counted(layers, kept.sizes[-1] / tokens, kept.casts, forward, backward, head_alone)


class _Kept:
    """Context manager that counts, layer by layer, what a forward keeps for the backward pass.

    Attributes:
        sizes: bytes of each decoder layer, and last those outside of all.
        casts: bytes of copies of weights.
    """

    def __init__(self, model: nn.Module) -> None:
        found = decoder_layers(model)
        self._layers = list(found[1]) if found else []
        self.sizes, self.casts = [0.0] * (len(self._layers) + 1), 0.0
        self._now = len(self._layers)
        self._held = {_place(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        self._shapes = {frozenset(weight.shape) for weight in model.parameters() if weight.dim() == 2}
        self._saving = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def __enter__(self) -> _Kept:
        """Begin to count."""

        def at(number: int) -> Any:
            def go(*_: object) -> None:
                self._now = number

            return go

        outside = len(self._layers)
        self._hooks = [
            hook
            for number, layer in enumerate(self._layers)
            for hook in (layer.register_forward_pre_hook(at(number)), layer.register_forward_hook(at(outside)))
        ]
        self._saving.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """Count no more."""
        self._saving.__exit__(*_)
        for hook in self._hooks:
            hook.remove()

    def _pack(self, tensor: Tensor) -> Tensor:
        place = _place(tensor)
        if place not in self._held:
            self._held[place] = tensor  # so that its place is not given to another
            if tensor.dim() == 2 and frozenset(tensor.shape) in self._shapes:
                self.casts += tensor.untyped_storage().nbytes()
            else:
                self.sizes[self._now] += tensor.untyped_storage().nbytes()
        return tensor


def _place(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers does with sdpa where nothing is masked; it looks for content to find that out."""
    grouped = query.shape[1] != key.shape[1]
    attended = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped)
    return attended.transpose(1, 2).contiguous(), None


def _register() -> None:
    AttentionInterface.register(_ATTENTION, _attend)
    AttentionMaskInterface.register(_ATTENTION, lambda *_, **__: None)
