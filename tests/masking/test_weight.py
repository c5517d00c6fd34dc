from __future__ import annotations

import pytest
import torch

from mft_ray.masking.straight_through import softly_masked
from mft_ray.masking.weight import WeightMask

WEIGHT, ORIGIN, SCORES, OUTER = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))
MASK = SCORES.abs() >= 0.5


def mask_of(cache: torch.dtype | None = None, origin: torch.Tensor | None = None, signed: bool = False) -> WeightMask:
    return WeightMask(SCORES.clone(), origin, cache, signed)


def gradient(made: WeightMask, result: torch.Tensor) -> torch.Tensor:
    (found,) = torch.autograd.grad(result, made.scores, OUTER.to(result.dtype))
    return found


@pytest.mark.parametrize("cache", [None, torch.float32])
def test_all_is_kept_until_a_mask_is_set(cache: torch.dtype | None) -> None:
    assert torch.equal(mask_of(cache)(WEIGHT), WEIGHT)


@pytest.mark.parametrize("origin", [None, ORIGIN], ids=["weight", "delta"])
@pytest.mark.parametrize("signed", [False, True])
def test_keeping_the_effective_weight_changes_nothing(origin: torch.Tensor | None, signed: bool) -> None:
    made = [mask_of(cache, origin, signed) for cache in (None, torch.float32)]
    for mask in (MASK, ~MASK):  # the second time it is written over
        for one in made:
            one.set(mask, WEIGHT)
        plain, kept = (one(WEIGHT) for one in made)
        assert torch.equal(plain, torch.where(mask, WEIGHT, 0 if origin is None else origin))
        assert torch.equal(kept, plain)
        assert torch.equal(gradient(made[0], plain), gradient(made[1], kept))


def test_the_effective_weight_is_kept_in_the_dtype_asked_for() -> None:
    made = mask_of(torch.bfloat16)
    made.set(MASK, WEIGHT)
    result = made(WEIGHT)
    assert torch.equal(result, (WEIGHT * MASK).bfloat16())
    assert gradient(made, result).dtype == torch.float32


def test_a_dropped_copy_is_computed_again() -> None:
    made = mask_of(torch.float32)
    made.set(MASK, WEIGHT)
    made.forget()
    assert torch.equal(made(WEIGHT), WEIGHT * MASK)


@pytest.mark.parametrize("origin", [None, ORIGIN], ids=["weight", "delta"])
def test_a_mask_is_soft_in_training_alone(origin: torch.Tensor | None) -> None:
    made = mask_of(torch.float32, origin)
    made.set(MASK, WEIGHT, threshold=0.5, temperature=0.1)
    assert torch.equal(made.train()(WEIGHT), softly_masked(made.scores, WEIGHT, 0.5, 0.1, origin))
    assert torch.equal(made.eval()(WEIGHT), torch.where(MASK, WEIGHT, 0 if origin is None else origin))


def test_a_soft_mask_without_temperature_is_hard() -> None:
    made = mask_of().train()
    made.set(MASK, WEIGHT, threshold=0.5, temperature=0.0)
    assert torch.equal(made(WEIGHT), WEIGHT * MASK)


def test_only_scores_are_trained_or_stored() -> None:
    made = mask_of(torch.float32, ORIGIN)
    made.set(MASK, WEIGHT)
    assert list(made.state_dict()) == ["scores"]
    assert [name for name, parameter in made.named_parameters() if parameter.requires_grad] == ["scores"]


def test_a_backward_pass_uses_the_weight_that_its_forward_used() -> None:
    made = mask_of(torch.float32)
    made.set(MASK, WEIGHT)
    inputs = torch.ones(3, 8, requires_grad=True)
    loss = torch.nn.functional.linear(inputs, made(WEIGHT)).sum()
    made.set(~MASK, WEIGHT)
    loss.backward()
    assert inputs.grad is not None
    torch.testing.assert_close(inputs.grad[0], (WEIGHT * MASK).sum(0))
