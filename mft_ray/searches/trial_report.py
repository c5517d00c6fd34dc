"""What a trial reports to Tune: an evaluation, or how it ended. The only place that knows Tune's flat dicts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from mft_ray.training.job import Evaluation, StopReason

# A flat dict as Tune passes results on.
TuneResult = dict[str, Any]

# Keys that Optuna's objectives and Tune's tables are named by.
METRIC, RATIO = "best_score", "ratio"
TOTAL_STEPS = "total_steps"
_REASON, _DIVERGED = "stopped_reason", "diverged"


@dataclass(frozen=True)
class Evaluated:
    """A trial that goes on.

    Attributes:
        evaluation: the newest evaluation.
        best: the best score so far; NaN where the scores on the way are of another metric than the last one.
        total_steps: steps of the trial, at most; None where it does not say.
    """

    evaluation: Evaluation
    best: float
    total_steps: int | None = None

    def to_tune(self) -> TuneResult:
        """Return the report as Tune's result."""
        steps = {} if self.total_steps is None else {TOTAL_STEPS: self.total_steps}
        return {**asdict(self.evaluation), METRIC: self.best, **steps}


@dataclass(frozen=True)
class Ended:
    """A trial that has ended.

    Attributes:
        reason: why it ended.
        best: its score; NaN if it has none.
        last: the last evaluation; None if there was none.
        diverged: whether its loss or its scores became NaN.
    """

    reason: StopReason
    best: float = math.nan
    last: Evaluation | None = None
    diverged: bool = False

    @property
    def ratio(self) -> float:
        """Masking ratio at the last evaluation; NaN without one."""
        return math.nan if self.last is None else self.last.ratio

    def to_tune(self) -> TuneResult:
        """Return the report as Tune's last result of the trial."""
        last = asdict(self.last) if self.last else {RATIO: math.nan}
        return {**last, METRIC: self.best, _REASON: str(self.reason), _DIVERGED: self.diverged, "done": True}


TrialReport = Evaluated | Ended


def from_tune(result: Mapping[str, Any]) -> TrialReport:
    """Return what a trial reported.

    Args:
        result: what `Evaluated.to_tune` or `Ended.to_tune` made, with whatever Tune added.
    """
    best = result.get(METRIC)
    best = math.nan if best is None else float(best)
    if _REASON in result:
        last = _evaluation(result) if "step" in result else None
        return Ended(StopReason(result[_REASON]), best, last, bool(result.get(_DIVERGED)))
    return Evaluated(_evaluation(result), best, result.get(TOTAL_STEPS))


def ended(result: Mapping[str, Any] | None, failed: bool = False) -> Ended:
    """Return how a trial ended, also where Tune ended it: by its last report, or by none.

    Args:
        result: the last that Tune has of the trial, if any.
        failed: whether Tune calls it failed.
    """
    report = from_tune(result) if result else None
    if failed or report is None:
        known = report if isinstance(report, Ended) else None
        return Ended(StopReason.FAILED, diverged=known is not None and known.diverged)
    if isinstance(report, Ended):
        return report
    return Ended(StopReason.PRUNED, report.best, report.evaluation)


def _evaluation(result: Mapping[str, Any]) -> Evaluation:
    return Evaluation(**{field.name: result[field.name] for field in fields(Evaluation) if field.name in result})
