"""What frozen layers below the lowest trained one make of an example, computed once and kept.

Nothing there changes, so that it is the same in every epoch, every evaluation, and every trial on that backbone. Layers
are skipped by standing in for them, whatever they are: a few examples are compared with the full forward first.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mft_ray.masking import decoder_layers

# Of logits, where both ways compute the same but may sum in another order.
_CLOSE = 1e-3


class States:
    """Hidden states of a split's examples before one layer, in a file that goes with this process.

    Args:
        lengths: tokens of each example.
        width: numbers in a token's state.
        dtype: dtype of the states.

    Attributes:
        bytes: bytes of the disk that it holds.

    Raises:
        OSError: the disk has no room for them.
    """

    def __init__(self, lengths: Sequence[int], width: int, dtype: torch.dtype) -> None:
        self._starts = [0, *itertools.accumulate(lengths)]
        self._width, self._dtype = width, dtype
        self._present = [False] * len(lengths)
        self.bytes = self.size(lengths, width, dtype)
        # Has no name: nothing of it is left behind, however this process ends. Read and written rather than mapped:
        # pages of a map would count as this process's memory.
        self._file = tempfile.TemporaryFile(prefix="mft-states-", buffering=0)  # noqa: SIM115
        os.posix_fallocate(self._file.fileno(), 0, max(1, self.bytes))

    @staticmethod
    def size(lengths: Sequence[int], width: int, dtype: torch.dtype) -> int:
        """Return the bytes that the states of all examples take."""
        return sum(lengths) * width * dtype.itemsize

    def has(self, indices: Sequence[int]) -> bool:
        """Say whether the states of all these examples are there."""
        return all(self._present[index] for index in indices)

    def put(self, index: int, states: Tensor) -> None:
        """Keep an example's states, shape (tokens, width)."""
        plain = states.detach().to("cpu", self._dtype).contiguous()
        content = plain.view(torch.uint8).numpy().data.cast("B")
        at = self._starts[index] * self._width * self._dtype.itemsize
        while content:
            written = os.pwrite(self._file.fileno(), content, at)
            content, at = content[written:], at + written
        self._present[index] = True

    def get(self, rows: Rows) -> Tensor:
        """Return examples' states as they lie in a forward, zeros between them, shape (rows, length, width)."""
        found = torch.zeros(1 if rows.packed else len(rows.indices), rows.length, self._width, dtype=self._dtype)
        for index, row, tokens in rows.places():
            into = found[row, tokens].view(torch.uint8).numpy().data.cast("B")
            at = self._starts[index] * self._width * self._dtype.itemsize
            while into:
                read = os.preadv(self._file.fileno(), [into], at)
                into, at = into[read:], at + read
        return found.to(rows.device, non_blocking=True)


@dataclass(frozen=True)
class Rows:
    """Examples of one forward, a row each, padded behind, or packed into one.

    Attributes:
        split: folder and name of the split.
        lengths: tokens of each of the split's examples.
        indices: examples of the split, in the batch's order.
        length: tokens of a row of the batch, padding included.
        device: device of the batch.
        packed: whether all examples lie one behind the other in one row.
    """

    split: tuple[str, str]
    lengths: Sequence[int]
    indices: Sequence[int]
    length: int
    device: torch.device
    packed: bool = False

    def places(self) -> list[tuple[int, int, slice]]:
        """Return each example, its row in the batch, and its tokens there."""
        if not self.packed:
            return [(index, row, slice(0, self.lengths[index])) for row, index in enumerate(self.indices)]
        ends = itertools.accumulate(self.lengths[index] for index in self.indices)
        return [
            (index, 0, slice(end - self.lengths[index], end)) for index, end in zip(self.indices, ends, strict=True)
        ]


@dataclass(frozen=True)
class Key:
    """What hidden states follow from.

    Attributes:
        backbone: what the frozen layers are: model, dtype, fingerprint.
        compute: dtype of the computation.
        split: folder and name of the split.
        layer: number of the layer that the states are the input of.
    """

    backbone: tuple[Any, ...]
    compute: str
    split: tuple[str, str]
    layer: int


class StateCache:
    """The states that a worker keeps, the least recently used first to go.

    Attributes:
        budget: bytes that all of them may take.
    """

    def __init__(self) -> None:
        self.budget = 0.0
        self._kept: dict[Key, States] = {}

    def open(self, key: Key, lengths: Sequence[int], width: int, dtype: torch.dtype) -> States | None:
        """Return the states under a key, new ones if there are none; None where the budget is too small for them."""
        states = self._kept.pop(key, None)
        if states is None:
            needed = States.size(lengths, width, dtype)
            if needed > self.budget:
                return None
            while sum(each.bytes for each in self._kept.values()) + needed > self.budget:
                del self._kept[next(iter(self._kept))]
            try:
                states = States(lengths, width, dtype)
            except OSError:
                return None
        self._kept[key] = states
        return states

    def below(self, key: Key, indices: Sequence[int]) -> tuple[int, States] | None:
        """Return the deepest states at or below a key's layer that have all these examples, and their layer."""
        found = [
            (each.layer, states)
            for each, states in self._kept.items()
            if (each.backbone, each.compute, each.split) == (key.backbone, key.compute, key.split)
            and each.layer <= key.layer
            and states.has(indices)
        ]
        return max(found, key=lambda pair: pair[0], default=None)


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
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError):
            return False
        scale = max(float(whole.abs().max()), 1e-6)
        return skipped == self._layer and all(
            float((mine[row, tokens] - whole[row, tokens]).abs().max()) <= _CLOSE * scale
            for _, row, tokens in rows.places()
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

        replaced = self._layers[:count]
        for number, layer in enumerate(replaced):
            layer.forward = stand_in(last=number == count - 1)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for layer in replaced:
                del layer.forward  # the class's own again

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
