"""Whether one model is really better than another on the same examples."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

# Random indices held at once by the bootstrap: 2**22 of 8 bytes, and as many drawn values, are 64 MB.
_DRAWN_AT_ONCE = 2**22
_FEW_KINDS = 50  # of differences

Test = Literal["mcnemar", "paired_t", "wilcoxon", "cluster_t"]

LEVEL = 0.05  # of tests, two-sided
POWER = 0.8  # of what is called detectable


@dataclass(frozen=True)
class Paired:
    """A comparison of two models on the same examples.

    Attributes:
        n: number of examples.
        sources: number of independent sources of examples; ``n`` where each is its own.
        candidate: mean score of the candidate.
        baseline: mean score of the baseline.
        delta: candidate minus baseline.
        ci95: bootstrap interval of delta, at the confidence that was asked for (95% by default).
        p_value: two-sided, of the hypothesis that the two do not differ.
        test: which test the p-value is from.
        detectable: the smallest true difference that so many examples, differing so much, show at the 5% level in
            80% of experiments.
        needed: examples that it takes, at that level and power, to show a difference as large as delta; None if
            delta is 0.
    """

    n: int
    sources: int
    candidate: float
    baseline: float
    delta: float
    ci95: tuple[float, float]
    p_value: float
    test: Test
    detectable: float
    needed: int | None

    @property
    def better(self) -> bool:
        """Whether a gain is believed: interval and test must agree."""
        return self.ci95[0] > 0 and self.p_value < LEVEL

    @property
    def worse(self) -> bool:
        """Whether a loss is believed, by the same rule."""
        return loss_believed(self.ci95, self.p_value)


def loss_believed(ci95: tuple[float, float], p_value: float) -> bool:
    """Say whether a candidate is worse beyond chance: interval and test must agree.

    Args:
        ci95: interval of candidate minus baseline.
        p_value: two-sided p-value, adjusted where several are looked at.
    """
    return ci95[1] < 0 and p_value < LEVEL


def paired(
    candidate: Sequence[float],
    baseline: Sequence[float],
    *,
    binary: bool,
    resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
    real_test: Literal["paired_t", "wilcoxon"] = "paired_t",
    sources: Sequence[Hashable] | None = None,
) -> Paired:
    """Compare two models' scores on the same examples.

    The interval is the percentile interval of the mean difference over resampled examples. The p-value is
    exact McNemar for right-or-wrong scores and ``real_test`` otherwise. With a handful of examples on which
    two models disagree the interval can leave zero out while the exact p-value is still large, so a
    claim of a gain should need both.

    Examples that share a source (questions on one document) are not independent. With ``sources`` whole sources are
    resampled (the cluster bootstrap), and the p-value is of a t-test with a standard error that is robust to clusters.

    Args:
        candidate: one score per example.
        baseline: the other model's scores, same examples and order.
        binary: scores are 0 or 1.
        resamples: number of resamples of the bootstrap.
        seed: seed of the bootstrap.
        confidence: confidence of the interval, between 0 and 1.
        real_test: test of scores that are not binary.
        sources: source of each example; None if each is its own.

    Raises:
        ValueError: lengths differ, fewer than two examples or sources, a score that is not finite, or one that is
            neither 0 nor 1 with ``binary``.
    """
    mine, theirs = _scores(candidate, "candidate"), _scores(baseline, "baseline")
    if mine.size != theirs.size:
        raise ValueError(f"the scores are not paired: {mine.size} of the candidate, {theirs.size} of the baseline")
    if binary and not (np.isin(mine, (0, 1)).all() and np.isin(theirs, (0, 1)).all()):
        raise ValueError("binary scores must be 0 or 1")
    difference = mine - theirs
    clusters = _clusters(difference, sources)
    error = _cluster_error(clusters)
    test, p = _tested(difference, clusters, error, binary, real_test)
    delta = float(difference.mean())
    reach = _reach() * error
    return Paired(
        n=mine.size,
        sources=len(clusters),
        candidate=float(mine.mean()),
        baseline=float(theirs.mean()),
        delta=delta,
        ci95=_interval(clusters, resamples, seed, confidence),
        p_value=p,
        test=test,
        # Fewer examples than that, on which two models differ, are never enough for McNemar's test.
        detectable=max(reach, _fewest_wins() / mine.size) if binary else reach,
        needed=math.ceil(mine.size * (reach / delta) ** 2) if delta else None,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values of several hypotheses so that the chance of any false alarm keeps its level (Holm, 1979).

    Args:
        p_values: one per hypothesis.

    Returns:
        The adjusted p-values in the same order.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


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


def _clusters(difference: NDArray[np.float64], sources: Sequence[Hashable] | None) -> NDArray[np.float64]:
    """Return the sum of the differences and the number of examples of every source, shape (sources, 2)."""
    if sources is None:
        return np.stack([difference, np.ones_like(difference)], axis=1)
    if len(sources) != difference.size:
        raise ValueError(f"needs the source of each of {difference.size} examples; got {len(sources)}")
    numbers: dict[Hashable, int] = {}
    places = [numbers.setdefault(source, len(numbers)) for source in sources]
    if len(numbers) < 2:
        raise ValueError("needs examples of at least two sources")
    return np.stack([np.bincount(places, difference), np.bincount(places)], axis=1)


def _cluster_error(clusters: NDArray[np.float64]) -> float:
    """The standard error of the mean difference; with a cluster per example it is the usual one."""
    sums, sizes = clusters.T
    residuals = sums - sums.sum() / sizes.sum() * sizes
    count = len(clusters)
    return float(math.sqrt(count / (count - 1) * (residuals**2).sum()) / sizes.sum())


def _interval(clusters: NDArray[np.float64], resamples: int, seed: int, confidence: float) -> tuple[float, float]:
    kinds, counts = np.unique(clusters, axis=0, return_counts=True)
    if not kinds[:, 0].any():
        return (0.0, 0.0)
    rng = np.random.default_rng(seed)
    if len(kinds) <= _FEW_KINDS:
        # To draw examples is to draw how many there are of each kind: the same distribution, and much faster.
        drawn = rng.multinomial(len(clusters), counts / len(clusters), size=resamples) @ kinds
        low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [(1 - confidence) / 2, (1 + confidence) / 2])
        return (float(low), float(high))
    from scipy import stats  # here: half a second at the start of every worker, which has no use for it

    result = stats.bootstrap(
        (clusters[:, 0], clusters[:, 1]),
        lambda sums, sizes, axis: sums.sum(axis) / sizes.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _DRAWN_AT_ONCE // len(clusters)),
        confidence_level=confidence,
        method="percentile",
        rng=rng,
    )
    return (float(result.confidence_interval.low), float(result.confidence_interval.high))


def _tested(
    difference: NDArray[np.float64],
    clusters: NDArray[np.float64],
    error: float,
    binary: bool,
    real_test: Literal["paired_t", "wilcoxon"],
) -> tuple[Test, float]:
    grouped = len(clusters) < difference.size
    test: Test = "cluster_t" if grouped else "mcnemar" if binary else real_test
    if not difference.any():
        return test, 1.0
    from scipy import stats

    if test == "mcnemar":
        # Of the examples on which the two disagree, does either win more than a fair coin would?
        wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
        return test, float(stats.binomtest(wins, wins + losses, 0.5).pvalue)
    if test == "wilcoxon":
        return test, float(stats.wilcoxon(difference).pvalue)
    if error < 1e-12 * abs(difference.mean()):
        return test, 0.0  # the same gain everywhere: t is infinite
    return test, float(2 * stats.t.sf(abs(difference.mean()) / error, len(clusters) - 1))


def _reach() -> float:
    """Standard errors between no difference and one that is detectable at `LEVEL` with `POWER`."""
    normal = NormalDist()
    return normal.inv_cdf(1 - LEVEL / 2) + normal.inv_cdf(POWER)


def _fewest_wins() -> int:
    """Examples, all won, with which McNemar's exact p-value is below `LEVEL`."""
    return math.floor(math.log2(2 / LEVEL)) + 1
