from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mft_ray.masking.straight_through import masked, softly_masked, straight_through

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
shapes = st.sampled_from([(3, 4), (1, 1), (0, 3), (5,), (2, 3, 2), ()])


@st.composite
def tensors(draw: st.DrawFn) -> tuple[torch.Tensor, ...]:
    """Scores (zeros of both signs among them), a weight, another, a mask and an outer gradient."""
    shape, dtype = draw(shapes), draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    scores = torch.randn(shape, generator=generator).round()
    weight, origin, outer = (torch.randn(shape, generator=generator).to(dtype) for _ in range(3))
    return scores, weight, origin, torch.rand(shape, generator=generator) < 0.5, outer


def slow_gradient(
    scores: torch.Tensor, weight: torch.Tensor, outer: torch.Tensor, signed: bool = False
) -> torch.Tensor:
    """sign(S) * W * dL/dW~, one entry at a time, sign(0) = 1."""
    result = torch.empty_like(scores)
    for index in range(scores.numel()):
        sign = -1.0 if scores.view(-1)[index] < 0 and not signed else 1.0
        result.view(-1)[index] = sign * weight.view(-1)[index].float() * outer.view(-1)[index].float()
    return result


def backward(result: torch.Tensor, scores: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
    (gradient,) = torch.autograd.grad(result, scores, outer)
    assert gradient.dtype == torch.float32
    return gradient


@given(tensors(), st.booleans())
@settings(deadline=None)
def test_a_removed_weight_is_zero_and_the_gradient_is_the_slow_one(
    given_tensors: tuple[torch.Tensor, ...], signed: bool
) -> None:
    scores, weight, _, mask, outer = given_tensors
    scores.requires_grad_()
    result = straight_through(scores, weight, masked(weight, mask), signed=signed)
    assert result.dtype == weight.dtype
    assert torch.equal(result, torch.where(mask, weight, torch.zeros_like(weight)))
    assert torch.equal(backward(result, scores, outer), slow_gradient(scores.detach(), weight, outer, signed))


@given(tensors(), st.booleans())
@settings(deadline=None)
def test_a_removed_delta_goes_back_to_the_origin(given_tensors: tuple[torch.Tensor, ...], signed: bool) -> None:
    scores, weight, origin, mask, outer = given_tensors
    scores.requires_grad_()
    result = straight_through(scores, weight, masked(weight, mask, origin), origin, signed)
    assert torch.equal(result, torch.where(mask, weight, origin))
    expected = slow_gradient(scores.detach(), weight.float() - origin.float(), outer, signed)
    assert torch.equal(backward(result, scores, outer), expected)


@given(tensors(), st.floats(0.01, 2), st.floats(0, 2), st.booleans())
@settings(deadline=None)
def test_a_soft_mask_has_the_gradient_of_the_plain_formula(
    given_tensors: tuple[torch.Tensor, ...], temperature: float, threshold: float, delta: bool
) -> None:
    scores, weight, origin, _, outer = (tensor.double() for tensor in given_tensors)
    scores.requires_grad_()
    start = origin if delta else torch.zeros_like(weight)
    kept = 1 / (1 + torch.exp(-(scores.abs() - threshold) / temperature))
    plain = start + (weight - start) * kept
    result = softly_masked(scores, weight, threshold, temperature, origin if delta else None)
    torch.testing.assert_close(result, plain)
    (found,), (expected,) = (torch.autograd.grad(output, scores, outer) for output in (result, plain))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_soft_mask_far_from_its_threshold_is_exact(dtype: torch.dtype, delta: bool) -> None:
    weight, origin = (torch.randn(50, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in (0, 1))
    chosen = origin if delta else None
    scores = torch.zeros(50)
    assert torch.equal(softly_masked(scores, weight, -torch.inf, 0.1, chosen), weight)
    removed = softly_masked(scores, weight, 1e9, 0.1, chosen)
    assert torch.equal(removed, origin if delta else torch.zeros_like(weight))


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_the_sign_of_zero_is_one(zero: float) -> None:
    scores, weight = torch.tensor([zero], requires_grad=True), torch.tensor([3.0])
    assert backward(straight_through(scores, weight, weight), scores, torch.tensor([2.0])).item() == 6.0


def test_a_removed_weight_gets_gradient_and_can_come_back() -> None:
    scores = torch.tensor([0.1, -0.1], requires_grad=True)
    result = straight_through(scores, torch.tensor([2.0, 2.0]), torch.zeros(2))
    assert backward(result, scores, torch.ones(2)).tolist() == [2.0, -2.0]


def test_nothing_but_scores_gets_gradient() -> None:
    scores, weight, effective, origin = (torch.ones(2, requires_grad=True) for _ in range(4))
    straight_through(scores, weight, effective, origin).sum().backward()
    assert scores.grad is not None
    assert weight.grad is effective.grad is origin.grad is None


def test_a_removed_weight_is_a_positive_zero_whatever_it_was() -> None:
    weight = torch.tensor([-1.0, torch.inf, torch.nan, 2.0])
    result = masked(weight, torch.tensor([False, False, False, True]))
    assert result.tolist() == [0.0, 0.0, 0.0, 2.0]
    assert not result.signbit().any()


def test_an_origin_is_taken_bit_for_bit() -> None:
    origin = torch.tensor([-0.0, torch.inf, 5.0])
    result = masked(torch.tensor([1.0, 1.0, -0.0]), torch.tensor([False, False, True]), origin)
    assert result.view(torch.int32).tolist() == torch.tensor([-0.0, torch.inf, -0.0]).view(torch.int32).tolist()
