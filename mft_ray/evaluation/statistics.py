"""Whether one model is really better than another on the same examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

# Random indices held at once by the bootstrap: 2**22 of 8 bytes, and as many drawn values, are 64 MB.
_DRAWN_AT_ONCE = 2**22


@dataclass(frozen=True)
class Paired:
    """A comparison of two models on the same examples.

    Attributes:
        n: number of examples.
        candidate: mean score of the candidate.
        baseline: mean score of the baseline.
        delta: candidate minus baseline.
        ci95: bootstrap interval of delta, at the confidence that was asked for (95% by default).
        p_value: two-sided, of the hypothesis that the two do not differ.
        test: which test the p-value is from.
    """

    n: int
    candidate: float
    baseline: float
    delta: float
    ci95: tuple[float, float]
    p_value: float
    test: Literal["mcnemar", "paired_t"]


def paired(
    candidate: Sequence[float],
    baseline: Sequence[float],
    *,
    binary: bool,
    resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Paired:
    """Compare two models' scores on the same examples.

    The interval is the percentile interval of the mean difference over resampled examples. The p-value is
    exact McNemar for right-or-wrong scores and a paired t-test otherwise. With a handful of examples on which
    two models disagree the interval can leave zero out while the exact p-value is still large, so a
    claim of a gain should need both.

    Args:
        candidate: one score per example.
        baseline: the other model's scores, same examples and order.
        binary: scores are 0 or 1.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        confidence: of the interval, between 0 and 1.

    Raises:
        ValueError: lengths differ, fewer than two examples, a score that is not finite, or one that is
            neither 0 nor 1 with ``binary``.
    """
    mine, theirs = _scores(candidate, "candidate"), _scores(baseline, "baseline")
    if mine.size != theirs.size:
        raise ValueError(f"the scores are not paired: {mine.size} of the candidate, {theirs.size} of the baseline")
    if binary and not (np.isin(mine, (0, 1)).all() and np.isin(theirs, (0, 1)).all()):
        raise ValueError("binary scores must be 0 or 1")
    difference = mine - theirs
    return Paired(
        n=mine.size,
        candidate=float(mine.mean()),
        baseline=float(theirs.mean()),
        delta=float(difference.mean()),
        ci95=_interval(difference, resamples, seed, confidence),
        p_value=_mcnemar(difference) if binary else _paired_t(difference),
        test="mcnemar" if binary else "paired_t",
    )


def right_or_wrong(*scores: Sequence[float]) -> bool:
    """Say whether all scores are 0 or 1."""
    return all(score in (0.0, 1.0) for values in scores for score in values)


def interval(values: Sequence[float], *, binary: bool, confidence: float = 0.95) -> tuple[float, float]:
    """The confidence interval of the mean of ``values``: Wilson's for right-or-wrong scores, else Student's.

    Args:
        values: one score per example.
        binary: scores are 0 or 1.
        confidence: between 0 and 1.

    Raises:
        ValueError: fewer than two values, or one that is not finite.
    """
    from scipy import stats

    scores = _scores(values, "values")
    if binary:
        found = stats.binomtest(int(scores.sum()), scores.size).proportion_ci(confidence, method="wilson")
        return (float(found.low), float(found.high))
    if np.ptp(scores) == 0:
        return (float(scores[0]), float(scores[0]))
    low, high = stats.t.interval(confidence, scores.size - 1, scores.mean(), stats.sem(scores))
    return (float(low), float(high))


def standard_error(values: Sequence[float]) -> float:
    """The standard error of the mean of ``values``.

    Raises:
        ValueError: fewer than two values, or one that is not finite.
    """
    scores = _scores(values, "values")
    return float(scores.std(ddof=1) / math.sqrt(scores.size))


def _scores(values: Sequence[float], name: str) -> NDArray[np.float64]:
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or scores.size < 2:
        raise ValueError(f"{name}: needs at least two scores, one per example; got shape {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError(f"{name}: {int((~np.isfinite(scores)).sum())} of {scores.size} scores are not finite")
    return scores


def _interval(difference: NDArray[np.float64], resamples: int, seed: int, confidence: float) -> tuple[float, float]:
    if not difference.any():
        return (0.0, 0.0)
    from scipy import stats  # here: half a second at the start of every worker, which has no use for it

    result = stats.bootstrap(
        (difference,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, _DRAWN_AT_ONCE // difference.size),
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return (float(result.confidence_interval.low), float(result.confidence_interval.high))


def _mcnemar(difference: NDArray[np.float64]) -> float:
    """Of the examples on which the two disagree, does either win more than a fair coin would?"""
    wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
    if wins + losses == 0:
        return 1.0
    from scipy import stats

    return float(stats.binomtest(wins, wins + losses, 0.5).pvalue)


def _paired_t(difference: NDArray[np.float64]) -> float:
    if not difference.any():
        return 1.0
    if np.ptp(difference) == 0:
        return 0.0  # the same gain everywhere: t is infinite, and scipy would warn on the way there
    from scipy import stats

    return float(stats.ttest_1samp(difference, 0.0).pvalue)
