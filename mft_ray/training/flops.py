"""Floating-point operations of training: counted where they happen, not guessed from the number of parameters."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop, sdpa_flop

# Two lengths give the line below, a third one shows that it is one.
_LENGTHS = 3


class Flops:
    """Counts matrix products and attention, forward and backward, as torch does.

    A multiplication and an addition are two. What is done entry by entry (norms, masks, the optimizer) is not counted.
    Counting makes a step slower, so only a few steps are: in a transformer every token of a batch costs a + b * length,
    the latter for attention. Where that does not hold to the last digit, every new shape of a batch is counted.

    Attributes:
        total: so far, of this worker.
    """

    def __init__(self) -> None:
        self.total = 0.0
        self._known: defaultdict[str, dict[tuple[int, int], float]] = defaultdict(dict)

    @contextmanager
    def counted(self, work: str, rows: int, length: int) -> Iterator[None]:
        """Count what is done meanwhile.

        Args:
            work: what that is; batches of one shape take equally many operations in the same work.
            rows: sequences in the batch.
            length: length of each, padding included.
        """
        known = self._known[work]
        flops = known.get((rows, length)) or _extrapolated(known, rows, length)
        if flops is None:
            counter = FlopCounterMode(display=False, custom_mapping=_ON_CPU)
            with counter:
                yield
            flops = known[rows, length] = float(counter.get_total_flops())
        else:
            yield
        self.total += flops


def _extrapolated(known: dict[tuple[int, int], float], rows: int, length: int) -> float | None:
    """Return what a batch of a new shape takes, if all known ones lie on a line; None if they do not."""
    per_token = {each: flops / (count * each) for (count, each), flops in known.items()}
    if len(per_token) < _LENGTHS:
        return None
    first, last = min(per_token), max(per_token)
    slope = (per_token[last] - per_token[first]) / (last - first)

    def line(at: int) -> float:
        return per_token[first] + slope * (at - first)

    straight = all(
        math.isclose(flops, count * each * line(each), rel_tol=1e-9) for (count, each), flops in known.items()
    )
    return float(round(rows * length * line(length))) if straight else None


def _forward(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return int(sdpa_flop(query, key, value))


def _backward(gradient: Any, query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return int(sdpa_backward_flop(gradient, query, key, value))


# torch knows those of GPUs.
_ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}
