import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mft_ray.evaluation.statistics import holm, interval, paired, right_or_wrong, standard_error

pairs_of_bits = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=60)


def test_mcnemar_counts_only_the_disagreements() -> None:
    # 12 gained, 3 lost, 85 the same: P = 2 * sum_{k<=3} C(15, k) / 2^15
    candidate = [1.0] * 12 + [0.0] * 3 + [1.0] * 85
    baseline = [0.0] * 12 + [1.0] * 3 + [1.0] * 85
    result = paired(candidate, baseline, binary=True, resamples=500)
    assert result.test == "mcnemar"
    assert result.p_value == pytest.approx(2 * sum(math.comb(15, k) for k in range(4)) / 2**15)
    assert (result.n, result.candidate, result.baseline) == (100, 0.97, 0.88)
    assert result.delta == pytest.approx(0.09)
    assert 0 < result.ci95[0] < 0.09 < result.ci95[1]


def test_paired_t_for_everything_else() -> None:
    rng = np.random.default_rng(0)
    baseline = rng.normal(-1, 1, 400)
    candidate = baseline + rng.normal(0.1, 0.5, 400)
    result = paired(candidate.tolist(), baseline.tolist(), binary=False)
    difference = candidate - baseline
    assert result.test == "paired_t"
    assert result.p_value == pytest.approx(float(stats.ttest_rel(candidate, baseline).pvalue))
    # With 400 examples the bootstrap and the normal interval are close.
    half = 1.96 * standard_error(difference.tolist())
    assert result.ci95 == pytest.approx((difference.mean() - half, difference.mean() + half), abs=half * 0.1)


@pytest.mark.parametrize("binary", [True, False])
def test_a_model_against_itself(binary: bool) -> None:
    scores = [1.0, 0.0, 1.0, 1.0]
    result = paired(scores, scores, binary=binary)
    assert (result.delta, result.ci95, result.p_value) == (0.0, (0.0, 0.0), 1.0)


@pytest.mark.filterwarnings("error")
def test_the_same_gain_everywhere() -> None:
    result = paired([0.5, 0.75, 1.0], [0.25, 0.5, 0.75], binary=False, resamples=200)
    assert (result.ci95, result.p_value) == ((0.25, 0.25), 0.0)


def test_the_seed_decides_the_interval() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=50).tolist(), rng.normal(size=50).tolist()
    first = paired(a, b, binary=False, resamples=200, seed=3)
    assert first == paired(a, b, binary=False, resamples=200, seed=3)
    assert first.ci95 != paired(a, b, binary=False, resamples=200, seed=4).ci95


def test_more_confidence_is_a_wider_interval() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=80).tolist(), rng.normal(size=80).tolist()
    narrow = paired(a, b, binary=False, resamples=2000, confidence=0.8).ci95
    wide = paired(a, b, binary=False, resamples=2000, confidence=0.99).ci95
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


@settings(max_examples=40, deadline=None)
@given(pairs_of_bits)
def test_swapping_the_two_mirrors_the_result(pairs: list[tuple[int, int]]) -> None:
    a, b = ([float(value) for value in column] for column in zip(*pairs, strict=True))
    forth, back = (paired(*both, binary=True, resamples=100) for both in ((a, b), (b, a)))
    assert forth.delta == -back.delta
    assert forth.p_value == pytest.approx(back.p_value)
    assert (forth.detectable, forth.needed) == (back.detectable, back.needed)
    assert 0 <= forth.p_value <= 1
    assert -1 <= forth.ci95[0] <= forth.ci95[1] <= 1


@pytest.mark.parametrize("binary", [True, False])
def test_the_interval_covers_the_truth_and_the_test_keeps_its_level(binary: bool) -> None:
    rng = np.random.default_rng(0)
    runs, n, truth = 400, 150, 0.1
    covered = false_alarms = 0
    for _ in range(runs):
        if binary:  # 30% gained, 20% lost, the rest the same; then 25% each way
            candidate, baseline = _bits(rng, n, 0.3, 0.2)
            null = _bits(rng, n, 0.25, 0.25)
        else:
            baseline = rng.exponential(1, n)
            candidate = baseline + rng.laplace(truth, 0.5, n)
            null = (baseline, baseline + rng.laplace(0, 0.5, n))
        low, high = paired(candidate, baseline, binary=binary, resamples=400).ci95
        covered += low <= truth <= high
        false_alarms += paired(*null, binary=binary, resamples=100).p_value < 0.05
    assert 0.92 <= covered / runs <= 0.975
    assert false_alarms / runs <= 0.075  # McNemar exact is below its level


def _bits(rng: np.random.Generator, n: int, gained: float, lost: float) -> tuple[np.ndarray, np.ndarray]:
    kind = rng.choice(4, n, p=[gained, lost, (1 - gained - lost) / 2, (1 - gained - lost) / 2])
    return np.isin(kind, (0, 2)).astype(float), np.isin(kind, (1, 2)).astype(float)


def test_an_interval_of_bits_is_the_bootstraps() -> None:
    # Drawing how many there are of each kind must be what drawing examples is.
    a, b = _bits(np.random.default_rng(0), 300, 0.2, 0.1)
    drawn = stats.bootstrap((a - b,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1))
    low, high = drawn.confidence_interval
    assert paired(a, b, binary=True, resamples=20_000).ci95 == pytest.approx((low, high), abs=0.004)


@pytest.mark.parametrize("gain", [0.0, 1.0])
def test_what_is_detectable_is_found_in_four_of_five_experiments(gain: float) -> None:
    rng = np.random.default_rng(0)
    n, differing = 1000, 0.1
    detectable = paired(*_bits(rng, 100_000, differing / 2, differing / 2), binary=True, resamples=10).detectable * 10
    truth, found = gain * detectable, 0
    for _ in range(400):
        both = _bits(rng, n, (differing + truth) / 2, (differing - truth) / 2)
        found += paired(*both, binary=True, resamples=10).p_value < 0.05
    assert found / 400 <= 0.075 if gain == 0 else 0.72 <= found / 400 <= 0.88


def test_a_gain_of_what_is_needed_is_just_detectable() -> None:
    small = paired([1.0] * 8 + [0.0] * 192, [0.0] * 200, binary=True)
    assert small.needed is not None
    assert small.needed < 200  # it is already shown
    few = paired([1.0] * 3 + [0.0] * 197, [0.0] * 200, binary=True)
    assert few.detectable == pytest.approx(6 / 200)  # six wins and no loss are the least that McNemar believes
    rng = np.random.default_rng(0)
    a, b = _bits(rng, 400, 0.11, 0.1)
    result = paired(a, b, binary=True)
    assert result.needed is not None
    assert result.needed / 400 == pytest.approx((result.detectable / result.delta) ** 2, rel=0.01)
    assert paired(a, a, binary=True).needed is None


def test_examples_of_one_source_count_less() -> None:
    rng = np.random.default_rng(0)
    gains = np.repeat(rng.normal(0.1, 0.5, 40), 10)  # ten examples of each source, all alike
    scores, sources = rng.normal(size=400), np.repeat(np.arange(40), 10).tolist()
    alone = paired(scores + gains, scores, binary=False)
    shared = paired(scores + gains, scores, binary=False, sources=sources)
    assert (alone.sources, shared.sources, shared.test) == (400, 40, "cluster_t")
    assert shared.delta == pytest.approx(alone.delta)
    width = (shared.ci95[1] - shared.ci95[0]) / (alone.ci95[1] - alone.ci95[0])
    assert width == pytest.approx(math.sqrt(10), rel=0.1)
    # Ten copies are one: the test is that of the sources' means.
    means = gains.reshape(40, 10).mean(1)
    assert shared.p_value == pytest.approx(float(stats.ttest_1samp(means, 0).pvalue))
    own = paired(scores + gains, scores, binary=False, sources=list(range(400)))
    assert own == alone
    with pytest.raises(ValueError, match="two sources"):
        paired(scores, gains, binary=False, sources=[0] * 400)
    with pytest.raises(ValueError, match="source of each of 400"):
        paired(scores, gains, binary=False, sources=[0, 1])


def test_wilcoxon_is_not_moved_by_an_outlier() -> None:
    rng = np.random.default_rng(0)
    baseline = rng.normal(size=100)
    candidate = baseline + rng.normal(0.2, 0.3, 100)
    candidate[0] -= 50
    by_t, by_rank = (paired(candidate, baseline, binary=False, real_test=test) for test in ("paired_t", "wilcoxon"))
    assert by_rank.test == "wilcoxon"
    assert by_rank.p_value == float(stats.wilcoxon(candidate - baseline).pvalue) < 0.001 < 0.05 < by_t.p_value


def test_holm() -> None:
    # Holm (1979), and the example of R's p.adjust: each p times how many are left, never falling.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_many_examples_stay_within_memory_and_time() -> None:
    rng = np.random.default_rng(0)
    a, b = _bits(rng, 6000, 0.05, 0.03)
    result = paired(a, b, binary=True)
    assert result.ci95[0] > 0
    assert result.p_value < 0.01


@pytest.mark.parametrize(
    ("candidate", "baseline", "binary", "says"),
    [
        ([], [], False, "at least two"),
        ([1.0], [1.0], False, "at least two"),
        ([1.0, 2.0], [1.0, 2.0, 3.0], False, "not paired"),
        ([1.0, math.nan], [1.0, 2.0], False, "candidate: 1 of 2 scores are not finite"),
        ([1.0, 2.0], [-math.inf, 2.0], False, "baseline"),
        ([1.0, 0.5], [1.0, 0.0], True, "0 or 1"),
    ],
)
def test_scores_that_cannot_be_compared(candidate: list[float], baseline: list[float], binary: bool, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        paired(candidate, baseline, binary=binary)


def test_standard_error() -> None:
    assert standard_error([1.0, 2.0, 3.0, 4.0]) == pytest.approx(math.sqrt(5 / 3) / 2)
    assert standard_error([1.0, 1.0]) == 0
    bits = [1.0] * 30 + [0.0] * 70
    assert standard_error(bits) == pytest.approx(math.sqrt(0.3 * 0.7 / 99))
    with pytest.raises(ValueError, match="at least two"):
        standard_error([1.0])


def test_the_interval_of_a_share_is_wilsons() -> None:
    # Newcombe (1998), table I: 15 of 148 and 0 of 20.
    assert interval([1.0] * 15 + [0.0] * 133, binary=True) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert interval([0.0] * 20, binary=True) == pytest.approx((0, 0.1611), abs=1e-4)


def test_the_interval_of_a_mean_is_students() -> None:
    values = [1.0, 2.0, 4.0]
    reach = 4.302653 * np.std(values, ddof=1) / math.sqrt(3)
    assert interval(values, binary=False) == pytest.approx((7 / 3 - reach, 7 / 3 + reach))
    assert interval([0.5, 0.5], binary=False) == (0.5, 0.5)
    with pytest.raises(ValueError, match="at least two"):
        interval([1.0], binary=False)


@settings(deadline=None, max_examples=20)
@given(st.floats(0.05, 0.95), st.integers(0, 2**32 - 1))
def test_intervals_hold_the_truth_as_often_as_they_say(share: float, seed: int) -> None:
    drawn = np.random.default_rng(seed).random((200, 60)) < share
    found = [interval(row.astype(float).tolist(), binary=True) for row in drawn]
    assert sum(low <= share <= high for low, high in found) >= 0.88 * len(found)


def test_right_or_wrong() -> None:
    assert right_or_wrong([0.0, 1.0], [1.0])
    assert not right_or_wrong([0.0, 1.0], [0.5])
