from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny_models import gpt2, llama
from torch import nn
from transformers.pytorch_utils import Conv1D

from mft_ray.errors import UserError
from mft_ray.masking import INITS, Init, Masks, MaskSettings, Weight, select
from mft_ray.masking.init import initial_scores, input_norms

WANDA = MaskSettings(init="wanda", init_scale=0.5)
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


def batches(features: int) -> list[torch.Tensor]:
    """Of other lengths, with features of other sizes."""
    generator = torch.Generator().manual_seed(1)
    sizes = torch.arange(1.0, features + 1)
    return [torch.randn(shape, features, generator=generator) * sizes for shape in (5, 3)] + [sizes.view(1, 1, -1)]


def linear() -> nn.Module:
    return nn.Linear(6, 4)


def conv1d() -> nn.Module:
    """The weight of GPT-2's layers is transposed."""
    module: nn.Module = Conv1D(4, 6)
    return module


@pytest.mark.parametrize(("make_layer", "input_dim"), [(linear, 1), (conv1d, 0)])
def test_wanda_is_the_weight_times_the_norm_of_its_input(make_layer: Callable[[], nn.Module], input_dim: int) -> None:
    torch.manual_seed(0)
    layer, seen = make_layer(), batches(6)
    found = input_norms(layer, [Weight("weight", None, None, input_dim)], lambda: [layer(batch) for batch in seen])
    tokens = torch.cat([batch.flatten(0, -2) for batch in seen])
    weight = layer.get_parameter("weight").detach()
    scores = initial_scores("weight", weight, WANDA, 0, found["weight"])
    # Entry by entry, as Wanda's paper writes it: |W_ij| * ||X_j||, scaled to a mean of init_scale.
    expected = weight.abs().clone()
    for feature in range(6):
        expected.select(input_dim, feature).mul_(tokens[:, feature].square().sum().sqrt())
    torch.testing.assert_close(scores, expected * 0.5 / expected.mean())


@pytest.mark.parametrize("make", [llama, gpt2])
def test_calibration_sees_every_projection_and_leaves_no_trace(make: Callable[[], nn.Module]) -> None:
    model, tokens = make(), torch.arange(12).view(2, 6)
    weights = select(model)
    norms = input_norms(model, weights, lambda: model(tokens))
    for weight in weights:
        value = model.get_parameter(weight.name)
        shape = [1] * value.dim()
        shape[weight.input_dim] = value.shape[weight.input_dim]
        assert list(norms[weight.name].shape) == shape
        assert not model.get_submodule(weight.module)._forward_pre_hooks


def test_one_unbatched_input_is_one_token() -> None:
    layer = linear()
    norms = input_norms(layer, [Weight("weight", None, None, 1)], lambda: layer(torch.tensor([3.0, -4, 0, 0, 0, 1])))
    assert norms["weight"].tolist() == [[3, 4, 0, 0, 0, 1]]


def test_wanda_needs_calibration() -> None:
    with pytest.raises(UserError, match=r"init wanda needs calibration: give Masks\(calibrate="):
        Masks(llama(), WANDA)


def test_a_layer_that_calibration_never_reached_is_told() -> None:
    with pytest.raises(UserError, match=r"layers\.0\.self_attn\.q_proj\.weight \(28 in all\) has shown none"):
        Masks(llama(), WANDA, calibrate=lambda: None)


def test_wanda_refuses_what_is_no_linear_layer() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 3, 3))

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return torch.einsum("eoi,ti->to", self.weight, tokens)

    model = nn.Sequential(nn.Linear(3, 3), Experts())
    with pytest.raises(UserError, match=r"1\.weight \(1 in all\).*not a plain linear layer.*Use init magnitude"):
        Masks(model, WANDA, calibrate=lambda: model(torch.ones(4, 3)))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_hooks_go_even_if_calibration_fails() -> None:
    layer = linear()

    def fail() -> None:
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        input_norms(layer, [Weight("weight", None, None, 1)], fail)
    assert not layer._forward_pre_hooks
