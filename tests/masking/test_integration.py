"""A masked model is a model: what PyTorch and transformers do with models works with it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from tiny_models import TOKENS, Make, copies, fine_tuned, gpt2, gradients_of, llama, logits_of, loss_of, same
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import MixtralConfig, MixtralForCausalLM

from mft_ray.masking import Masks, MaskSettings


def mixtral(layers: int = 2) -> nn.Module:
    """Its experts are stacked."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    tokens = {"vocab_size": 13, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model: nn.Module = MixtralForCausalLM(MixtralConfig(**sizes, **experts, **tokens, num_hidden_layers=layers)).eval()
    return model


@pytest.fixture(params=[llama, gpt2, mixtral], ids=lambda make: make.__name__)
def make_lm(request: pytest.FixtureRequest) -> Make:
    chosen: Make = request.param
    return chosen


@pytest.fixture(params=["hard", "soft", "delta", "not cached"])
def kind(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


def masks_on(make: Make, kind: str) -> Masks:
    """In training mode. Two calls give equal ones."""
    settings = MaskSettings(
        ratio=0.4, hardness="soft" if kind == "soft" else "hard", removes="delta" if kind == "delta" else "weight"
    )
    masks = Masks(fine_tuned(make), settings, before=dict(make().named_parameters()), cache=kind != "not cached")
    masks.model.train()
    return masks


def assert_equal(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    # On a GPU what is fused or computed again adds up in another order.
    rtol, atol = (1e-4, 1e-7) if torch.get_default_device().type == "cuda" else (1e-6, 1e-9)
    for one, other in zip(found, expected, strict=True):
        assert other.abs().sum() > 0
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(make_lm: Make, kind: str, reentrant: bool) -> None:
    masks = masks_on(make_lm, kind)
    loss_of(masks.model).backward()
    expected = gradients_of(masks)
    model: Any = masks.model
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    # Reentrant checkpoints give gradient only where an input has one, and everything but scores is frozen.
    model.enable_input_require_grads()
    loss_of(model).backward()
    assert_equal(gradients_of(masks), expected)


def test_checkpoints_that_are_not_reentrant_need_nothing_else(make_lm: Make) -> None:
    masks = masks_on(make_lm, "hard")
    loss_of(masks.model).backward()
    expected = gradients_of(masks)
    model: Any = masks.model
    model.gradient_checkpointing_enable({"use_reentrant": False})
    loss_of(model).backward()
    assert_equal(gradients_of(masks), expected)


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize(
    "make_lm", [partial(make, 1) for make in (llama, gpt2, mixtral)], ids=["llama", "gpt2", "mixtral"]
)
def test_a_compiled_model_gives_the_same_and_follows_the_masks(make_lm: Make, kind: str) -> None:
    plain, compiled = masks_on(make_lm, kind), masks_on(make_lm, kind)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    model = torch.compile(compiled.model, backend=counter, fullgraph=True)
    for progress in (0.1, 0.2, 0.3):
        expected = logits_of(plain.model)
        assert_equal([logits_of(model)], [expected])
        loss_of(plain.model).backward()
        loss_of(model).backward()
        assert_equal(gradients_of(compiled), gradients_of(plain))
        for masks in (plain, compiled):
            with torch.no_grad():
                for score in masks.scores():
                    score.copy_(score.flip(0))
            masks.update(progress)
        assert not torch.equal(logits_of(plain.model), expected)
    # A soft mask's temperature is a number to the compiler, which takes it for a variable once it changes.
    assert counter.frame_count == (2 if kind == "soft" else 1)


@pytest.mark.parametrize("kind", ["hard", "delta"])
def test_generation_is_the_same_with_a_key_value_cache_and_when_merged(make_lm: Make, kind: str) -> None:
    masks = masks_on(make_lm, kind)
    model: Any = masks.model.eval()
    prompt = torch.tensor([[3, 4, 5], [7, 8, 9]])
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    options["attention_mask"] = torch.ones_like(prompt)
    cached = model.generate(prompt, **options)
    assert cached.shape == (2, 9)
    assert torch.equal(model.generate(prompt, use_cache=False, **options), cached)
    masks.merge()
    assert torch.equal(model.generate(prompt, **options), cached)


def test_gradients_of_two_backward_calls_add_up(make_lm: Make, kind: str) -> None:
    masks = masks_on(make_lm, kind)
    batches = [TOKENS, TOKENS.flip(1)]
    parts = []
    for batch in batches:
        loss_of(masks.model, batch).backward()
        parts.append(gradients_of(masks))
    for batch in batches:
        loss_of(masks.model, batch).backward()
    assert_equal(gradients_of(masks), [one + other for one, other in zip(*parts, strict=True)])


def test_inference_mode_sees_the_mask(make_lm: Make, kind: str) -> None:
    masks = masks_on(make_lm, kind)
    masks.model.eval()
    expected = logits_of(masks.model)
    with torch.inference_mode():
        assert torch.equal(logits_of(masks.model), expected)
    loss_of(masks.model).backward()  # and leaves nothing behind that training would trip over
    assert gradients_of(masks)


def test_scores_and_backbone_survive_a_state_dict(make_lm: Make) -> None:
    masks, other = masks_on(make_lm, "hard"), masks_on(make_lm, "hard")
    with torch.no_grad():
        for score in masks.scores():
            score.copy_(score.flip(0))
    other.model.load_state_dict(masks.model.state_dict())
    for each in (masks, other):
        each.update()
    assert same(copies(masks.masks()), copies(other.masks()))
