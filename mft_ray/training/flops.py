"""Floating-point operations of training: counted where they happen, not guessed from the number of parameters."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop, sdpa_flop


class Flops:
    """Counts matrix products and attention, forward and backward, as torch does; a multiplication and an addition are
    two. What is done entry by entry (norms, masks, the optimizer) is not counted.

    Attributes:
        total: so far, of this worker.
    """

    def __init__(self) -> None:
        self.total = 0.0
        self._by_shape: dict[Hashable, float] = {}

    @contextmanager
    def counted(self, shape: Hashable) -> Iterator[None]:
        """Count what is done meanwhile.

        Args:
            shape: of the batch. Batches of one shape take equally many operations: the first of each is counted.
        """
        if shape in self._by_shape:
            yield
        else:
            counter = FlopCounterMode(display=False, custom_mapping=_ON_CPU)
            with counter:
                yield
            self._by_shape[shape] = float(counter.get_total_flops())
        self.total += self._by_shape[shape]


def _forward(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return int(sdpa_flop(query, key, value))


def _backward(gradient: Any, query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return int(sdpa_backward_flop(gradient, query, key, value))


# torch knows those of GPUs.
_ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}
