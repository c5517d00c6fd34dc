from __future__ import annotations

import pytest
import torch

from mft_ray.masking import INITS, Init, MaskSettings
from mft_ray.masking.init import initial_scores

WEIGHT = torch.randn(40, 50, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_are_fp32_of_the_weights_shape(init: Init, dtype: torch.dtype) -> None:
    scores = initial_scores("a.weight", WEIGHT.to(dtype), MaskSettings(init=init), 0)
    assert scores.dtype == torch.float32
    assert scores.shape == WEIGHT.shape
    assert scores.isfinite().all()


@pytest.mark.parametrize("init", INITS)
def test_an_empty_or_zero_weight_has_finite_scores(init: Init) -> None:
    for weight in (torch.empty(0, 3), torch.zeros(2, 3)):
        scores = initial_scores("a.weight", weight, MaskSettings(init=init), 0)
        assert scores.shape == weight.shape
        assert scores.isfinite().all()


def test_normal_is_repeatable_and_depends_on_seed_and_name() -> None:
    settings = MaskSettings(init="normal")
    first = initial_scores("a.weight", WEIGHT, settings, 0)
    torch.rand(5)  # the global generator plays no part
    assert torch.equal(first, initial_scores("a.weight", WEIGHT * 2, settings, 0))
    for name, seed in (("b.weight", 0), ("a.weight", 1), ("a.weight", -1)):
        assert not torch.equal(first, initial_scores(name, WEIGHT, settings, seed))


def test_normal_does_not_disturb_the_global_generator() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    initial_scores("a.weight", WEIGHT, MaskSettings(init="normal"), 0)
    assert torch.equal(before, torch.get_rng_state())


def test_normal_has_the_scale_asked_for() -> None:
    scores = initial_scores("a.weight", torch.empty(300, 300), MaskSettings(init="normal", init_scale=0.02), 0)
    assert scores.std().item() == pytest.approx(0.02, rel=0.02)
    assert abs(scores.mean().item()) < 3e-4


def test_normal_ignores_a_callers_default_dtype() -> None:
    expected = initial_scores("a.weight", WEIGHT, MaskSettings(init="normal"), 0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = initial_scores("a.weight", WEIGHT, MaskSettings(init="normal"), 0)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)


def test_magnitude_ranks_as_the_weights_do() -> None:
    scores = initial_scores("a.weight", WEIGHT, MaskSettings(init="magnitude", init_scale=0.5), 0)
    assert scores.mean().item() == pytest.approx(0.5)
    assert (scores >= 0).all()
    assert torch.equal(scores.flatten().argsort(stable=True), WEIGHT.abs().flatten().argsort(stable=True))


def test_constant_is_the_scale_everywhere() -> None:
    scores = initial_scores("a.weight", WEIGHT, MaskSettings(init="constant", init_scale=0.25), 0)
    assert (scores == 0.25).all()
