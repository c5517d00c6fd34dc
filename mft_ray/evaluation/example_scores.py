"""Scores of a training's best state on every validation example: what its mean is made of, in four bytes each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mft_ray.utils.files import Damaged, write_bytes

_SCORES, _METRIC = "scores", "metric"


@dataclass(frozen=True)
class ExampleScores:
    """Scores of one model.

    Attributes:
        metric: name of the metric.
        values: one per example, in the split's order.
    """

    metric: str
    values: NDArray[np.float32]

    @classmethod
    def of(cls, metric: str, values: Sequence[float]) -> ExampleScores:
        """Take scores as they are computed."""
        return cls(metric, np.asarray(values, dtype=np.float32))

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_bytes(path, save({_SCORES: self.values}, {_METRIC: self.metric}))

    @classmethod
    def load(cls, path: Path) -> ExampleScores:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is none.
            Damaged: it is empty, half-written, or something else.
        """
        if not path.exists():
            raise FileNotFoundError(path)
        try:
            with safe_open(path, framework="np") as file:
                return cls(file.metadata()[_METRIC], file.get_tensor(_SCORES))
        except (SafetensorError, OSError, KeyError, TypeError) as error:
            raise Damaged(path, f"does not hold scores of examples ({error})") from error
