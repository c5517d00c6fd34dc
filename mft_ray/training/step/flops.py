"""Floating-point operations of training: counted where they happen, not guessed from the number of parameters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

# Rows, length of each, and positions that the head runs at.
Shape = tuple[int, int, int]


class Flops:
    """Counts matrix products and attention, forward and backward, as torch does.

    A multiplication and an addition are two. What is done entry by entry (norms, masks, the optimizer) is not counted.
    Counting makes a step slower, so only a few steps are: in a transformer every token of a batch costs a + b * length,
    the latter for attention, every position that its head runs at costs c, and every place in a row d, for rotations
    that all rows share. Where that does not hold to nine digits, every new shape of a batch is counted.

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
            counter = FlopCounterMode(display=False, custom_mapping=_COUNTS)
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


def _terms(shape: Shape) -> tuple[float, float, float, float]:
    rows, length, answers = shape
    return rows * length, rows * length * length, answers, length


def _forward(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return _attention(query, key, query[-1] + value[-1])


def _backward(gradient: Any, query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    # Scores once more; the gradients of values, probabilities, queries and keys.
    return _attention(query, key, 3 * query[-1] + 2 * value[-1])


def _attention(query: Any, key: Any, widths: int) -> int:
    """Return the operations of products of every query with every key, or of as many, of these widths in all."""
    batch, heads, queries, _ = query
    return int(2 * batch * heads * queries * key[-2] * widths)


# torch's own counts know none of a CPU, and some versions none where several query heads share a key.
_FORWARD = ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")
_COUNTS = {getattr(torch.ops.aten, f"_scaled_dot_product_{name}"): _forward for name in _FORWARD}
_COUNTS |= {getattr(torch.ops.aten, f"_scaled_dot_product_{name}_backward"): _backward for name in _FORWARD}
