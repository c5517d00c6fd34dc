"""What every method is to the training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from torch import nn


class Method(ABC):
    """What is trained of a model, and what is kept of it.

    Attributes:
        parameters: what the optimizer gets.
    """

    parameters: list[nn.Parameter]

    @property
    def ratio(self) -> float:
        """The masking ratio in force; 0 where nothing is masked."""
        return 0.0

    @property
    def eligible(self) -> bool:
        """Whether this state may be the run's best (not while a ratio is still annealed)."""
        return True

    def update(self, progress: float) -> None:  # noqa: B027 (most methods have nothing to do)
        """Follow an optimizer step.

        Args:
            progress: fraction of training done, 0 to 1.
        """

    @abstractmethod
    def keep(self, out: Path) -> None:
        """Write this state into a run's folder, in place of an earlier one. Every worker must call it."""

    @abstractmethod
    def recall(self, out: Path) -> None:
        """Put the state that was kept back in force, for a last evaluation. Every worker must call it."""

    @abstractmethod
    def free(self) -> None:
        """Leave a frozen backbone as it was. The engine is gone by then."""
