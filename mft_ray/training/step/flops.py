"""Floating-point operations of training: counted where they happen, not guessed from the number of parameters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop, sdpa_flop

# Rows, length of each, and positions that the head runs at.
Shape = tuple[int, int, int]


class Flops:
    """Counts matrix products and attention, forward and backward, as torch does.

    A multiplication and an addition are two. What is done entry by entry (norms, masks, the optimizer) is not counted.
    Counting makes a step slower, so only a few steps are: in a transformer every token of a batch costs a + b * length,
    the latter for attention, and every position that its head runs at costs c. Where that does not hold to nine digits,
    every new shape of a batch is counted.

    Attributes:
        total: so far, of this worker.
    """

    def __init__(self) -> None:
        self.total = 0.0
        self._known: defaultdict[str, dict[Shape, float]] = defaultdict(dict)

    @contextmanager
    def counted(self, work: str, rows: int, length: int, answers: int = 0) -> Iterator[None]:
        """Count what is done meanwhile.

        Args:
            work: what that is; batches of one shape take equally many operations in the same work.
            rows: sequences in the batch.
            length: length of each, padding included.
            answers: positions that the output head runs at, where it does not run at all.
        """
        known, shape = self._known[work], (rows, length, answers)
        flops = known.get(shape) or _extrapolated(known, shape)
        if flops is None:
            counter = FlopCounterMode(display=False, custom_mapping=_ON_CPU)
            with counter:
                yield
            flops = known[shape] = float(counter.get_total_flops())
        else:
            yield
        self.total += flops


def _extrapolated(known: Mapping[Shape, float], shape: Shape) -> float | None:
    """Return what a batch of a new shape takes, if all known ones follow the rule; None if they do not, or are few."""
    if len(known) <= len(_terms(shape)):
        return None
    scale = np.array([_terms(each) for each in known]).max(axis=0).clip(min=1)
    samples, wanted = np.array([_terms(each) for each in known]) / scale, np.array(_terms(shape)) / scale
    # What no batch has shown yet cannot be told.
    if np.linalg.matrix_rank(np.vstack([samples, wanted])) > np.linalg.matrix_rank(samples):
        return None
    counted = np.array(list(known.values()))
    factors = np.linalg.lstsq(samples, counted, rcond=None)[0]
    return float(round(wanted @ factors)) if np.allclose(samples @ factors, counted, rtol=1e-9, atol=0) else None


def _terms(shape: Shape) -> tuple[float, float, float]:
    rows, length, answers = shape
    return rows * length, rows * length * length, answers


def _forward(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return int(sdpa_flop(query, key, value))


def _backward(gradient: Any, query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return int(sdpa_backward_flop(gradient, query, key, value))


# torch knows those of GPUs.
_ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}
