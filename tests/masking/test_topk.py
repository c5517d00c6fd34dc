from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from mft_ray.errors import UserError
from mft_ray.masking import keep_mask, removed_count

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
BELOW_ONE = math.nextafter(1.0, 0.0)
ratios = st.floats(0, 1, exclude_max=True) | st.integers(0, 99).map(lambda percent: percent / 100)


def slow_keep_mask(scores: torch.Tensor, ratio: float) -> torch.Tensor:
    """Sort by (|score|, position), remove the first ones."""
    flat = scores.flatten().tolist()
    order = sorted(range(len(flat)), key=lambda index: (abs(flat[index]), index))
    removed = set(order[: math.floor(Fraction(repr(ratio)) * len(flat))])
    return torch.tensor([index not in removed for index in range(len(flat))]).bool().view(scores.shape)


@st.composite
def score_tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(array_shapes(min_dims=0, max_dims=3, max_side=7))
    # Few distinct values make ties; signs, both zeros and infinities are in.
    few = st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 2.0, math.inf, -math.inf])
    values = draw(st.sampled_from([few, st.floats(-1e4, 1e4, width=16)]))
    flat = draw(st.lists(values, min_size=math.prod(shape), max_size=math.prod(shape)))
    return torch.tensor(flat, dtype=draw(st.sampled_from(DTYPES))).view(shape)


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


@pytest.mark.parametrize("scores", [[1.0, math.nan, 2.0], [math.nan] * 3])
def test_nan_scores_are_refused(scores: list[float]) -> None:
    # Ranked silently they would remove everything, and the loss would still be finite.
    with pytest.raises(FloatingPointError, match=r"NaN.*learning rate"):
        keep_mask(torch.tensor(scores), 0.34)


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
