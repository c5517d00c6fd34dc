"""Masks of many matrices at once: what one at a time gives, or the word that it may not be."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mft_ray.masking.batched_topk import keep_each
from mft_ray.masking.topk import keep_largest

SIZES = [1, 2, 7, 1_000, 2**15, 2**15 + 1, 2**16 - 1, 200_001]


def one_by_one(scores: list[torch.Tensor], removed: list[int], signed: bool) -> list[torch.Tensor]:
    ranked = [score if signed else score.abs() for score in scores]
    return [keep_largest([score], count)[0] for score, count in zip(ranked, removed, strict=True)]


def check(scores: list[torch.Tensor], removed: list[int], signed: bool = False) -> list[bool]:
    """Compare where the answer is said to be right; return where it is."""
    keeps, right = keep_each(scores, removed, signed)
    wanted = one_by_one(scores, removed, signed)
    for keep, expected, fits in zip(keeps, wanted, right.tolist(), strict=True):
        assert keep.shape == expected.shape
        assert not fits or torch.equal(keep, expected)
    return list(right.tolist())


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("ratio", [0.001, 0.1, 0.5, 0.97, 1.0])
def test_matrices_of_all_sizes_are_ranked_each_by_itself(ratio: float, signed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = [torch.randn(size, generator=generator) for size in SIZES]
    removed = [max(1, int(ratio * size)) for size in SIZES]
    assert all(check(scores, removed, signed))


@pytest.mark.parametrize("signed", [False, True])
def test_ties_go_to_the_lower_index(signed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    # As |W| of bfloat16 weights: few values, many ties at any threshold.
    scores = [torch.randn(300, 500, generator=generator).bfloat16().float() for _ in range(3)]
    assert all(check(scores, [1_000, 15_000, 75_000], signed))
    assert all(check([score.bfloat16() for score in scores], [1_000, 15_000, 75_000], signed))
    equal = [torch.ones(100, 7), torch.zeros(5_000)]
    assert all(check(equal, [350, 4_999], signed))


def test_more_ties_than_there_is_room_for_are_said() -> None:
    constant = torch.full((200_000,), 0.5)
    other = torch.linspace(-1, 1, 200_000)
    assert check([constant, other], [20_000, 20_000]) == [False, True]


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_nan_anywhere_is_said(size: int) -> None:
    scores = [torch.linspace(-1, 1, size) for _ in range(3)]
    scores[1][size // 3] = math.nan
    _, right = keep_each(scores, [3, 3, 3])
    assert right.tolist() == [True, False, True]


@given(
    st.lists(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40), min_size=1, max_size=4), st.data()
)
@settings(deadline=None)
def test_any_numbers(rows: list[list[float]], data: st.DataObject) -> None:
    scores = [torch.tensor(row, dtype=torch.float32) for row in rows]
    removed = [data.draw(st.integers(1, len(row))) for row in rows]
    assert all(check(scores, removed, data.draw(st.booleans())))
