from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from mft_ray.errors import UserError
from mft_ray.masking import keep_mask, removed_count
from mft_ray.masking.topk import _SAMPLE, _bracket, keep_largest

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
BELOW_ONE = math.nextafter(1.0, 0.0)
# More than are sampled, and of no round length: every third entry is looked at.
LARGE = 2 * _SAMPLE + 1234
ratios = st.floats(0, 1, exclude_max=True) | st.integers(0, 99).map(lambda percent: percent / 100)


def slow_keep_largest(magnitudes: Sequence[torch.Tensor], removed: int) -> list[torch.Tensor]:
    """Sort by (value, position over all tensors), remove the first ones."""
    entries = [value for magnitude in magnitudes for value in magnitude.flatten().tolist()]
    order = sorted(range(len(entries)), key=lambda position: (entries[position], position))
    keep = torch.ones(len(entries), dtype=torch.bool)
    keep[order[:removed]] = False
    parts = keep.split([magnitude.numel() for magnitude in magnitudes])
    return [part.view(magnitude.shape) for part, magnitude in zip(parts, magnitudes, strict=True)]


def slow_keep_mask(scores: torch.Tensor, ratio: float) -> torch.Tensor:
    (keep,) = slow_keep_largest([scores.abs()], math.floor(Fraction(repr(ratio)) * scores.numel()))
    return keep


def assert_as_sorted(magnitudes: Sequence[torch.Tensor], removed: int) -> None:
    expected = slow_keep_largest(magnitudes, removed)
    for found, slow in zip(keep_largest(magnitudes, removed), expected, strict=True):
        assert found.dtype == torch.bool
        assert torch.equal(found, slow)


# Few distinct values make ties; signs, both zeros and infinities are in.
few = st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 2.0, math.inf, -math.inf])


@st.composite
def score_tensors(draw: st.DrawFn, dtype: torch.dtype | None = None) -> torch.Tensor:
    shape = draw(array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=7))
    values = draw(st.sampled_from([few, st.floats(-1e4, 1e4, width=16)]))
    flat = draw(st.lists(values, min_size=math.prod(shape), max_size=math.prod(shape)))
    return torch.tensor(flat, dtype=dtype or draw(st.sampled_from(DTYPES))).view(shape)


@given(score_tensors(), ratios)
@example(torch.zeros(100), 0.29)
@example(torch.ones(3, 5, dtype=torch.bfloat16), BELOW_ONE)
@settings(deadline=None)
def test_agrees_with_sorting(scores: torch.Tensor, ratio: float) -> None:
    before = scores.clone()
    mask = keep_mask(scores, ratio)
    assert mask.dtype == torch.bool
    assert mask.shape == scores.shape
    assert torch.equal(mask, slow_keep_mask(scores, ratio))
    assert torch.equal(scores, before)


@given(st.lists(score_tensors(torch.float32), max_size=4), st.data())
@settings(deadline=None)
def test_several_tensors_are_ranked_as_one(scores: list[torch.Tensor], data: st.DataObject) -> None:
    removed = data.draw(st.integers(0, sum(score.numel() for score in scores)))
    assert_as_sorted(scores, removed)  # signed, as movement pruning ranks them
    assert_as_sorted([score.abs() for score in scores], removed)


def uniform(size: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(seed))


def unlike_its_sample(size: int) -> torch.Tensor:
    """Large wherever the sample looks, small elsewhere."""
    values = uniform(size)
    values[:: size // _SAMPLE | 1] += 10
    return values


index = torch.arange(LARGE)
LAYOUTS = {
    "random": uniform(LARGE),
    "all equal": torch.ones(LARGE),
    "all infinite": torch.full((LARGE,), math.inf),
    "a constant block": torch.where(index < LARGE // 2, 0.5, uniform(LARGE)),
    "rising": index.float(),
    "falling": index.flip(0).float(),
    "periodic, a power of two": (index % 64).float(),
    "periodic, as the sample is": (index % 3).float(),
    "few values": (uniform(LARGE) * 5).floor(),
    "half infinite": uniform(LARGE).masked_fill(uniform(LARGE, 1) < 0.5, math.inf),
    "a few outliers": torch.where(index % 5000 == 7, 1e30, uniform(LARGE) * 1e-30),
    "denormal": uniform(LARGE) * 1e-40,
    "unlike its sample": unlike_its_sample(LARGE),
    "half precision": uniform(LARGE).bfloat16(),
}


@pytest.mark.parametrize("removed", [1, 100, LARGE // 10, LARGE // 2, LARGE - 1, LARGE])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_large_tensors_agree_with_sorting(layout: str, removed: int) -> None:
    values = LAYOUTS[layout]
    assert_as_sorted([values], removed)
    assert_as_sorted([values[:1], values[1:1], values[1:8_001].view(100, 80), values[8_001:]], removed)


def test_the_sample_brackets_random_numbers_narrowly_and_may_miss() -> None:
    # Or else the test above would prove only one of the two ways through.
    for layout, hits in (("random", True), ("unlike its sample", False)):
        values = LAYOUTS[layout]
        low, high = _bracket([values], LARGE, LARGE // 2)
        inside = (values >= low) & (values <= high)
        assert (low <= float(values.sort().values[LARGE // 2 - 1]) <= high) == hits
        assert int(inside.sum()) < LARGE // 10


@pytest.mark.parametrize("size", [_SAMPLE - 1, _SAMPLE, _SAMPLE + 1, 2 * _SAMPLE - 1, 2 * _SAMPLE])
def test_sizes_at_which_sampling_starts(size: int) -> None:
    values = (uniform(size) * 1000).round()
    assert_as_sorted([values[:1], values[1:]], size // 3)  # one alone is not sampled on the CPU


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_count_is_exact_among_many_ties(dtype: torch.dtype) -> None:
    # Half precision makes thousands of ties out of distinct numbers.
    scores = torch.randn(200, 300, generator=torch.Generator().manual_seed(0)).to(dtype)
    for ratio in (0.0, 0.1, 0.333, 0.5, 0.99, BELOW_ONE):
        mask = keep_mask(scores, ratio)
        assert int((~mask).sum()) == removed_count(60_000, ratio)
        kept, removed = scores[mask].abs(), scores[~mask].abs()
        assert removed.numel() == 0 or removed.max() <= kept.min()


def test_ties_go_to_the_lower_flat_index() -> None:
    scores = torch.tensor([[1.0, -1.0, 1.0], [0.5, -1.0, 3.0]])
    assert keep_mask(scores, 0.5).tolist() == [[False, False, True], [False, True, True]]


def test_ties_go_to_the_earlier_tensor() -> None:
    first, second = keep_largest([torch.tensor([2.0, 1.0]), torch.tensor([[1.0], [1.0]])], 2)
    assert first.tolist() == [True, False]
    assert second.tolist() == [[False], [True]]


def test_a_transposed_view_counts_in_its_own_order() -> None:
    scores = torch.tensor([[1.0, 1.0], [1.0, 2.0], [2.0, 2.0]]).t()
    assert torch.equal(keep_mask(scores, 0.34), slow_keep_mask(scores, 0.34))


@pytest.mark.parametrize("ratio", [0.0, 0.5, BELOW_ONE])
@pytest.mark.parametrize("shape", [(0,), (0, 4), (), (1,), (1, 1)])
def test_nothing_is_removed_of_no_or_one_weight(shape: tuple[int, ...], ratio: float) -> None:
    mask = keep_mask(torch.zeros(shape), ratio)
    assert mask.shape == shape
    assert mask.all()


def test_ratio_zero_keeps_all_and_near_one_keeps_one() -> None:
    scores = torch.tensor([0.0, -3.0, 2.0])
    assert keep_mask(scores, 0.0).all()
    assert keep_mask(scores, BELOW_ONE).tolist() == [False, True, False]


@pytest.mark.parametrize("ratio", [0.0, 0.34])
@pytest.mark.parametrize("scores", [[1.0, math.nan, 2.0], [math.nan] * 3])
def test_nan_scores_are_refused(scores: list[float], ratio: float) -> None:
    # Ranked silently they would remove everything, and the loss would still be finite.
    with pytest.raises(FloatingPointError, match=r"NaN.*learning rate"):
        keep_mask(torch.tensor(scores), ratio)
    with pytest.raises(FloatingPointError, match=r"NaN.*learning rate"):
        keep_largest([torch.ones(3), torch.tensor(scores)], removed_count(6, ratio))


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, math.nan, math.inf])
def test_a_ratio_that_is_none_is_refused(ratio: float) -> None:
    with pytest.raises(UserError, match=r"outside \[0, 1\).*REMOVED"):
        keep_mask(torch.zeros(3), ratio)


@pytest.mark.parametrize(
    ("size", "ratio", "count"),
    # In binary 0.29 * 100 is 28.999..., 0.57 * 100 is 56.999...
    [(100, 0.29, 29), (100, 0.57, 57), (10, 0.1, 1), (9, 0.1, 0), (0, 0.5, 0), (10**10, 0.3, 3 * 10**9), (7, 0.0, 0)],
)
def test_the_count_is_what_a_person_computes(size: int, ratio: float, count: int) -> None:
    assert removed_count(size, ratio) == count


@given(st.integers(1, 10**9), ratios)
def test_something_is_always_kept(size: int, ratio: float) -> None:
    assert 0 <= removed_count(size, ratio) < size
