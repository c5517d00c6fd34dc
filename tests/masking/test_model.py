from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from mft_ray.errors import UserError
from mft_ray.masking import (
    Masks,
    MaskSettings,
    apply_masks,
    fingerprint,
    keep_mask,
    removed_count,
)

Make = Callable[[], nn.Module]
Logits = Callable[[nn.Module, torch.Tensor], torch.Tensor]
ANNEAL = MaskSettings(ratio=0.4, init="magnitude", schedule="anneal")


def bits(model: nn.Module) -> dict[str, bytes]:
    """Every parameter, to be compared bit for bit: -0.0 and 0.0 differ."""
    return {
        name: parameter.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        for name, parameter in model.named_parameters()
    }


def expected(make: Make, masks: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32) -> dict[str, bytes]:
    """W * M computed the plain way."""
    model = make().to(dtype)
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        weight.data = torch.where(mask, weight.data, torch.zeros((), dtype=dtype))
    return bits(model)


def train(masks: Masks, tokens: torch.Tensor, logits_of: Logits, steps: int = 5) -> None:
    """The plain PyTorch loop that a user would write."""
    optimizer = torch.optim.AdamW(masks.scores(), lr=0.05)
    for step in range(1, steps + 1):
        logits = logits_of(masks.model, tokens).float()
        nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
        masks.update(step / steps)


@pytest.mark.parametrize("settings", [MaskSettings(ratio=0.3), ANNEAL], ids=["paper", "anneal"])
def test_training_changes_the_masks_and_not_the_backbone(
    make: Make, tokens: torch.Tensor, logits_of: Logits, settings: MaskSettings
) -> None:
    masks = Masks(make(), settings)
    first = {name: mask.clone() for name, mask in masks.masks().items()}
    train(masks, tokens, logits_of)
    assert any(not torch.equal(first[name], mask) for name, mask in masks.masks().items())
    assert bits(masks.detach()) == bits(make())


def test_only_scores_can_be_trained(make: Make) -> None:
    masks = Masks(make())
    trainable = [parameter for parameter in masks.model.parameters() if parameter.requires_grad]
    assert {id(parameter) for parameter in trainable} == {id(parameter) for parameter in masks.scores()}
    assert all(parameter.dtype == torch.float32 for parameter in masks.scores())


def test_every_score_gets_gradient(make: Make, tokens: torch.Tensor, logits_of: Logits) -> None:
    masks = Masks(make(), MaskSettings(ratio=0.5))
    logits_of(masks.model, tokens).square().sum().backward()
    for score in masks.scores():
        assert score.grad is not None
        assert score.grad.abs().sum() > 0


@pytest.mark.parametrize("init", ["normal", "magnitude", "constant"])
def test_an_annealed_mask_starts_as_the_fft_model(
    make: Make, tokens: torch.Tensor, logits_of: Logits, init: str
) -> None:
    before = logits_of(make(), tokens)
    masks = Masks(make(), MaskSettings(ratio=0.9, init=init, schedule="anneal"))  # type: ignore[arg-type]
    assert masks.ratio == 0.0
    assert not masks.at_full_ratio
    assert torch.equal(logits_of(masks.model, tokens), before)


def test_a_constant_mask_is_in_force_at_once(make: Make, tokens: torch.Tensor, logits_of: Logits) -> None:
    masks = Masks(make(), MaskSettings(ratio=0.5))
    assert masks.at_full_ratio
    assert not torch.equal(logits_of(masks.model, tokens), logits_of(make(), tokens))


def test_update_follows_scores_and_progress(make: Make) -> None:
    masks = Masks(make(), ANNEAL)
    for progress, ratio in ((0.0, 0.0), (0.25, 0.35), (0.5, 0.4), (1.0, 0.4)):
        masks.update(progress)
        assert masks.ratio == pytest.approx(ratio)
        assert masks.at_full_ratio == (progress >= 0.5)
        for score, mask in zip(masks.scores(), masks.masks().values(), strict=True):
            assert int((~mask).sum()) == removed_count(score.numel(), masks.ratio)
            assert torch.equal(mask, keep_mask(score, masks.ratio))


def test_the_mask_changes_in_update_alone(make: Make, tokens: torch.Tensor, logits_of: Logits) -> None:
    masks = Masks(make(), MaskSettings(ratio=0.5))
    before = logits_of(masks.model, tokens)
    with torch.no_grad():
        for score in masks.scores():
            score.copy_(score.flip(0))
    assert torch.equal(logits_of(masks.model, tokens), before)
    masks.update()
    assert not torch.equal(logits_of(masks.model, tokens), before)


def test_update_gathers_each_score_before_it_reads_it() -> None:
    masks = Masks(nn.Linear(4, 4), MaskSettings(ratio=0.5))
    gathered = []

    @contextmanager
    def gather(parameter: nn.Parameter) -> Iterator[None]:
        gathered.append(parameter)
        with torch.no_grad():
            parameter.copy_(torch.arange(16.0).view(4, 4))
        yield

    masks.update(gather=gather)
    assert [id(score) for score in masks.scores()] == [id(score) for score in gathered]
    assert next(iter(masks.masks().values())).tolist() == [[False] * 4, [False] * 4, [True] * 4, [True] * 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merge_leaves_exactly_the_masked_weights(
    make: Make, tokens: torch.Tensor, logits_of: Logits, dtype: torch.dtype
) -> None:
    masks = Masks(make().to(dtype), MaskSettings(ratio=0.37))
    train(masks, tokens, logits_of)
    kept = {name: mask.clone() for name, mask in masks.masks().items()}
    with torch.no_grad():
        before = logits_of(masks.model, tokens)
    merged = masks.merge()
    assert bits(merged) == expected(make, kept, dtype)
    assert torch.equal(logits_of(merged, tokens), before)
    assert not any(parameter.requires_grad for parameter in merged.parameters())
    assert merged.state_dict().keys() == make().state_dict().keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_apply_masks_does_what_merge_does(make: Make, dtype: torch.dtype) -> None:
    masks = Masks(make().to(dtype), MaskSettings(ratio=0.37))
    applied = apply_masks(make().to(dtype), masks.masks())
    assert bits(applied) == expected(make, masks.masks(), dtype)
    assert bits(masks.merge()) == bits(applied)


def test_detach_gives_the_model_back(make: Make, tokens: torch.Tensor, logits_of: Logits) -> None:
    masks = Masks(make(), MaskSettings(ratio=0.5))
    model = masks.detach()
    assert type(model) is type(make())
    assert model.state_dict().keys() == make().state_dict().keys()
    assert torch.equal(logits_of(model, tokens), logits_of(make(), tokens))
    again = Masks(model, MaskSettings(ratio=0.5))  # what was masked once can be masked again
    assert bits(again.merge()) == expected(make, Masks(make(), MaskSettings(ratio=0.5)).masks())


def test_masks_are_named_after_weights_of_the_plain_model(make: Make) -> None:
    plain = dict(make().named_parameters())
    masks = Masks(make()).masks()
    assert masks
    for name, mask in masks.items():
        assert mask.shape == plain[name].shape


def test_scores_do_not_depend_on_what_else_is_masked(make: Make) -> None:
    every = Masks(make(), seed=3)
    last = list(every.masks())[-1]
    alone = Masks(make(), seed=3, modules=[last.removesuffix(".weight")])
    assert torch.equal(alone.masks()[last], every.masks()[last])


def test_a_single_linear_layer_can_be_masked() -> None:
    layer = nn.Linear(6, 5)
    weight = layer.weight.detach().clone()
    masks = Masks(layer, MaskSettings(ratio=0.5))
    (mask,) = masks.masks().values()
    assert torch.equal(masks.merge().get_parameter("weight"), weight * mask)


def test_what_the_model_lacks_is_refused_and_leaves_it_as_it_was(make: Make) -> None:
    model = make()
    with pytest.raises(UserError):
        Masks(model, MaskSettings(layers="0-99"))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert bits(model) == bits(make())


def test_a_tied_weight_is_refused() -> None:
    # Merged, the mask on the head would change the embedding too.
    embedding, head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
    head.weight = embedding.weight
    model = nn.Sequential(embedding, nn.Linear(4, 4), head)
    with pytest.raises(UserError, match=r"weight of 2 cannot be masked: it is tied.*0\.weight, 2\.weight"):
        Masks(model)
    assert list(Masks(model, modules=["1"]).masks()) == ["1.weight"]


def test_a_masked_model_generates() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "vocab_size": 13}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=2)).eval()
    masks = Masks(model, MaskSettings(ratio=0.5))
    prompt = torch.tensor([[3, 4, 5]])
    options = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones_like(prompt), "pad_token_id": 0}
    masked = model.generate(prompt, **options)
    masks.merge()
    assert torch.equal(model.generate(prompt, **options), masked)


def test_the_fingerprint_is_the_backbones_after_training(make: Make, tokens: torch.Tensor, logits_of: Logits) -> None:
    masks = Masks(make(), MaskSettings(ratio=0.5))
    train(masks, tokens, logits_of, steps=2)
    assert fingerprint(masks.detach()) == fingerprint(make())
