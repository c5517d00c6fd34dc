from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mft_ray.masking.straight_through import masked, straight_through

SIGNS = torch.tensor([1.0, -1.0])


def slow_gradient(scores: torch.Tensor, weight: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
    """sign(S) * W * dL/dW~, one entry at a time, sign(0) = 1."""
    result = torch.empty_like(scores)
    for index in range(scores.numel()):
        sign = -1.0 if scores.view(-1)[index] < 0 else 1.0
        result.view(-1)[index] = sign * weight.view(-1)[index].float() * outer.view(-1)[index].float()
    return result


@given(
    st.integers(0, 2**32),
    st.sampled_from([(3, 4), (1, 1), (0, 3), (5,)]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
@settings(deadline=None)
def test_forward_and_gradient_agree_with_the_slow_ones(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(shape, generator=generator).round(decimals=0).requires_grad_()  # rounded: zeros are in
    weight, outer = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    mask = torch.rand(shape, generator=generator) < 0.5
    result = straight_through(scores, weight, mask)
    assert result.dtype == dtype
    assert torch.equal(result, torch.where(mask, weight, torch.zeros_like(weight)))
    result.backward(outer)
    assert scores.grad is not None
    assert scores.grad.dtype == torch.float32
    assert torch.equal(scores.grad, slow_gradient(scores.detach(), weight, outer))


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_the_sign_of_zero_is_one(zero: float) -> None:
    scores = torch.tensor([zero], requires_grad=True)
    straight_through(scores, torch.tensor([3.0]), torch.tensor([True])).backward(torch.tensor([2.0]))
    assert scores.grad is not None
    assert scores.grad.item() == 6.0


def test_a_removed_weight_gets_gradient_and_can_come_back() -> None:
    scores = torch.tensor([0.1, -0.1], requires_grad=True)
    straight_through(scores, torch.tensor([2.0, 2.0]), torch.tensor([False, False])).sum().backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [2.0, -2.0]


def test_neither_weight_nor_mask_gets_gradient() -> None:
    scores, weight = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    straight_through(scores, weight, torch.tensor([True, False])).sum().backward()
    assert weight.grad is None


def test_a_removed_weight_is_a_positive_zero_whatever_it_was() -> None:
    weight = torch.tensor([-1.0, torch.inf, torch.nan, 2.0])
    result = masked(weight, torch.tensor([False, False, False, True]))
    assert result.tolist() == [0.0, 0.0, 0.0, 2.0]
    assert not result.signbit().any()
