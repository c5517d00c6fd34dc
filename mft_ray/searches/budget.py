"""What a search may spend, what it has spent, and the sign that says it is over."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from mft_ray.config import BudgetConfig
from mft_ray.utils.files import read_json, write_json
from mft_ray.utils.formatting import duration

_CHECK_S = 5.0


class Budget:
    """Wall time, tokens and dollars of a search's trials, over all its sessions.

    Args:
        limits: what may be spent.
        folder: folder of the run's own files. Keeps what was spent, and the sign.
    """

    def __init__(self, limits: BudgetConfig, folder: Path) -> None:
        self.limits = limits
        self._kept, self._sign = folder / "spent.json", folder / "budget-spent"
        nothing: dict[str, Any] = {"hours": 0.0, "tokens": {}}
        before = read_json(self._kept, dict) if self._kept.exists() else nothing
        self._hours_before: float = before["hours"]
        self._tokens: dict[str, int] = before["tokens"]
        self._started = time.monotonic()
        # A resumed search may have been given more.
        self._sign.unlink(missing_ok=True)
        self._keep()

    @property
    def hours(self) -> float:
        """Wall time so far, in hours."""
        return self._hours_before + (time.monotonic() - self._started) / 3600

    @property
    def tokens(self) -> int:
        """Input tokens that trials trained on so far."""
        return sum(self._tokens.values())

    @property
    def dollars(self) -> float | None:
        """Wall time at the cluster's price, if that is known."""
        price = self.limits.dollars_per_hour
        return None if price is None else self.hours * price

    def note(self, trial_id: str, tokens: int) -> None:
        """Note how many tokens a trial has used so far."""
        self._tokens[trial_id] = tokens
        self._keep()

    def check(self) -> None:
        """Keep what was spent and, at a limit, put up the sign. May be called often."""
        if time.monotonic() - self._checked >= _CHECK_S:
            self._keep()

    def _keep(self) -> None:
        self._checked = time.monotonic()
        write_json(self._kept, {"hours": self.hours, "tokens": self._tokens})
        if self.reached() is not None:
            self._sign.touch()

    def reached(self) -> str | None:
        """Return which limit has been reached, in words; None if there is something left."""
        limits = self.limits
        if limits.hours is not None and self.hours >= limits.hours:
            return f"{duration(limits.hours * 3600)} of wall time"
        if limits.tokens is not None and self.tokens >= limits.tokens:
            return f"{limits.tokens:,} tokens"
        if limits.dollars is not None and (self.dollars or 0.0) >= limits.dollars:
            return f"{limits.dollars:,.2f} dollars"
        return None

    def left(self) -> str:
        """Say what is left, empty if there is no limit."""
        limits, parts = self.limits, []
        if limits.hours is not None:
            parts.append(duration(max(limits.hours - self.hours, 0) * 3600))
        if limits.tokens is not None:
            parts.append(f"{max(limits.tokens - self.tokens, 0):,} tokens")
        if limits.dollars is not None:
            parts.append(f"{max(limits.dollars - (self.dollars or 0.0), 0):,.2f} dollars")
        return f"budget left: {', '.join(parts)}" if parts else ""


def spent(folder: Path) -> bool:
    """Say whether the sign is up: no trial begins then, and those at work end soon (`MaskTrial`)."""
    return (folder / "budget-spent").exists()
