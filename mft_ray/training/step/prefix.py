"""What frozen layers below the lowest trained one make of an example, computed once and kept.

Nothing there changes, so that it is the same in every epoch, every evaluation, and every trial on that backbone. Layers
are skipped by standing in for them, whatever they are: a few examples are compared with the full forward first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from mft_ray.masking import decoder_layers
from mft_ray.training.step.agreement import UNFIT, agree
from mft_ray.training.step.stand_in import stood_in
from mft_ray.training.step.states import Key, Rows, StateCache


class Prefix:
    """The frozen layers of a model, and what stands in for them.

    Args:
        model: with what is trained attached.
        layer: number of the lowest layer that is trained, from 1.
        cache: holds the states.
        backbone: part of `Key`.
        compute: part of `Key`.
    """

    def __init__(
        self, model: nn.Module, layer: int, cache: StateCache, backbone: tuple[Any, ...], compute: str
    ) -> None:
        found = decoder_layers(model)
        assert found is not None
        self._layers = list(found[1])
        self._layer, self._cache, self._backbone, self._compute = layer, cache, backbone, compute
        self._looked: set[str] = set()
        self._tuples = False

    @contextmanager
    def around(self, rows: Rows) -> Iterator[int]:
        """Context manager for one forward over examples: what is known of them is not computed again.

        Args:
            rows: examples of the forward.

        Yields:
            Number of layers that are skipped.
        """
        key = Key(self._backbone, self._compute, rows.split, self._layer)
        if rows.split not in self._looked:
            self._looked.add(rows.split)
            self._cache.look(key, rows.lengths)
        known = self._cache.below(key, rows.indices)
        start = known[0] if known else 0
        with ExitStack() as stack:
            if known:
                states = known[1].get(rows)
                stack.enter_context(self._skipped(start, states))
            if start < self._layer:
                stack.enter_context(self._kept(key, rows))
            yield start

    def agrees(self, forward: Callable[[], Tensor], rows: Rows) -> bool:
        """Say whether a model gives the same with its lower layers skipped.

        Args:
            forward: runs the model on the examples and returns its logits, shape (B, T, V).
            rows: examples that it runs on.
        """
        with self._form():
            whole = forward()
        try:
            with self.around(rows):  # computed, and kept
                forward()
            with self.around(rows) as skipped:
                mine = forward()
        except UNFIT:
            return False
        scale = max(float(whole.abs().max()), 1e-6)
        return skipped == self._layer and all(
            agree(mine[row, tokens], whole[row, tokens], scale) for _, row, tokens in rows.places()
        )

    @contextmanager
    def _form(self) -> Iterator[None]:
        """Learn in what form layers give their hidden states."""

        def look(_: nn.Module, __: Any, output: Any) -> None:
            self._tuples = isinstance(output, tuple)

        hook = self._layers[self._layer - 1].register_forward_hook(look)
        try:
            yield
        finally:
            hook.remove()

    @contextmanager
    def _skipped(self, count: int, states: Tensor) -> Iterator[None]:
        """Have the first layers hand on what they get, and the last of them hand on these states."""

        def stand_in(last: bool) -> Callable[..., Any]:
            def forward(*given: Any, **named: Any) -> Any:
                hidden = states if last else (given[0] if given else named["hidden_states"])
                return (hidden,) if self._tuples else hidden

            return forward

        with ExitStack() as stack:
            for number, layer in enumerate(self._layers[:count]):
                stack.enter_context(stood_in(layer, stand_in(last=number == count - 1)))
            yield

    @contextmanager
    def _kept(self, key: Key, rows: Rows) -> Iterator[None]:
        """Keep what reaches the lowest trained layer."""

        def keep(_: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
            hidden = given[0] if given else named["hidden_states"]
            states = self._cache.open(key, rows.lengths, hidden.shape[-1], hidden.dtype)
            if states is None:
                return
            for index, row, tokens in rows.places():
                if not states.has([index]):
                    states.put(index, hidden[row, tokens])

        hook = self._layers[self._layer].register_forward_pre_hook(keep, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()


def frozen_layers(model: nn.Module) -> int:
    """Return how many decoder layers lie below everything that is trained, and give the same in every forward.

    Args:
        model: with what is trained attached; what is not trained has no gradient.
    """
    found = decoder_layers(model)
    if found is None:
        return 0
    layers = list(found[1])
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    inside = [{id(parameter) for parameter in layer.parameters()} & trained for layer in layers]
    if not trained or trained != set().union(*inside):
        return 0
    lowest = next(number for number, ids in enumerate(inside) if ids)
    above = {id(module) for layer in layers[lowest:] for module in layer.modules()}
    return 0 if any(_random(module) for module in model.modules() if id(module) not in above) else lowest


def _random(module: nn.Module) -> bool:
    """Say whether a module drops something at random in training."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    return any(isinstance(rate, float) and rate > 0 for name, rate in vars(module).items() if "drop" in name)
