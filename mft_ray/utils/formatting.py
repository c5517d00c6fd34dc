"""How scores, times and probabilities are written: one place for units and digits."""

from __future__ import annotations

from dataclasses import dataclass

NONE = "–"


@dataclass(frozen=True)
class Unit:
    """How a metric's values are shown.

    Attributes:
        label: the metric in words.
        axis: label of an axis that shows the score, with its unit.
        delta_axis: label of an axis that shows a difference of scores, with its unit.
        scale: what a raw value is multiplied by before it is shown.
        suffix: the unit after a score.
        delta_suffix: the unit after a difference.
        digits: decimals shown.
    """

    label: str
    axis: str
    delta_axis: str
    scale: float
    suffix: str
    delta_suffix: str
    digits: int

    def score(self, value: float | None) -> str:
        """A score with its unit, such as ``88.42 %``."""
        return NONE if value is None else self.number(value) + self.suffix

    def number(self, value: float | None) -> str:
        """A score without its unit, for a table column whose head names it."""
        return NONE if value is None else f"{value * self.scale:.{self.digits}f}".replace("-", "−")

    def signed(self, value: float | None) -> str:
        """A difference with its sign and without its unit; a true minus lines up with the plus."""
        if value is None:
            return NONE
        text = f"{value * self.scale:+.{self.digits}f}"
        # What rounds to nothing has no sign worth showing.
        return text[1:] if float(text) == 0 else text.replace("-", "−")

    def delta(self, value: float | None) -> str:
        """A difference with sign and unit, such as ``+1.23 points``."""
        return NONE if value is None else f"{self.signed(value)}{self.delta_suffix}"

    def distance(self, value: float | None) -> str:
        """A difference without its sign, such as ``1.23 points``."""
        return NONE if value is None else f"{self.number(abs(value))}{self.delta_suffix}"

    def interval(self, bounds: tuple[float, float] | None) -> str:
        """An interval of differences, such as ``+0.41 to +2.05``."""
        return NONE if bounds is None else f"{self.signed(bounds[0])} to {self.signed(bounds[1])}"


def unit(metric: str) -> Unit:
    """How the metric is shown; an unknown one is shown as it is."""
    match metric:
        case "exact_match":
            return percent("Exact match")
        case "generated_match":
            return percent("Generated answers correct")
        case "answer_logprob":
            axis = "Log-probability per answer token (nats)"
            suffix = " nats/token"
            return Unit("Log-probability per answer token", axis, "Difference (nats/token)", 1, suffix, suffix, 4)
        case _:
            return Unit(metric, metric, f"Difference in {metric}", 1, "", "", 4)


def percent(label: str) -> Unit:
    """How a share is shown, by its name."""
    return Unit(label, f"{label} (%)", "Difference (percentage points)", 100, " %", " points", 2)


def size(count: float | None) -> str:
    """Bytes as a person says them: ``3.2 MB``; powers of 1000."""
    if count is None:
        return NONE
    return _scaled(count, ("B", "kB", "MB", "GB", "TB"))


def operations(count: float | None) -> str:
    """Floating-point operations as a person says them: ``1.3 TFLOP``."""
    if count is None:
        return NONE
    return _scaled(count, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP", "ZFLOP"))


def _scaled(value: float, units: tuple[str, ...]) -> str:
    place = 0
    while value >= 999.5 and place < len(units) - 1:
        value, place = value / 1000, place + 1
    return f"{value:.3g} {units[place]}"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: ``42 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if seconds is None:
        return NONE
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def p_value(value: float | None) -> str:
    """A p-value with no more digits than it deserves."""
    if value is None:
        return NONE
    return "< 0.0001" if value < 0.0001 else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def count(value: int | None) -> str:
    """A whole number with thousands separated."""
    return NONE if value is None else f"{value:,}"


def setting(value: object) -> str:
    """One value of a trial's configuration, short; small numbers (learning rates) all look alike."""
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 0.01 else f"{value:.3g}"
    return NONE if value is None else str(value)
