from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from tiny_models import Make, bits, copies, fine_tuned, gradients_of, logits_of, loss_of, same, train
from torch import nn

from mft_ray.errors import UserError
from mft_ray.masking import Masks, MaskSettings, apply_masks, check_fits, fingerprint, keep_mask

ANNEAL = MaskSettings(ratio=0.4, init="magnitude", schedule="anneal")
SOFT = MaskSettings(ratio=0.4, hardness="soft")


def expected(
    make: Make,
    masks: dict[str, torch.Tensor],
    dtype: torch.dtype = torch.float32,
    before: dict[str, torch.Tensor] | None = None,
) -> dict[str, bytes]:
    """W * M computed the plain way."""
    model = make().to(dtype)
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        removed = before[name] if before else torch.zeros((), dtype=dtype)
        weight.data = torch.where(mask, weight.data, removed)
    return bits(model)


@pytest.mark.parametrize("settings", [MaskSettings(ratio=0.3), ANNEAL], ids=["paper", "anneal"])
def test_training_changes_the_masks_and_not_the_backbone(make: Make, settings: MaskSettings) -> None:
    masks = Masks(make(), settings)
    first = copies(masks.masks())
    train(masks)
    assert not same(first, masks.masks())
    assert bits(masks.unload()) == bits(make())


def test_only_scores_can_be_trained(make: Make) -> None:
    masks = Masks(make())
    trainable = [parameter for parameter in masks.model.parameters() if parameter.requires_grad]
    assert {id(parameter) for parameter in trainable} == {id(parameter) for parameter in masks.scores()}
    assert all(parameter.dtype == torch.float32 for parameter in masks.scores())


def test_every_score_gets_gradient(make: Make) -> None:
    masks = Masks(make(), MaskSettings(ratio=0.5))
    logits_of(masks.model).square().sum().backward()
    for score in masks.scores():
        assert score.grad is not None
        assert score.grad.abs().sum() > 0


@pytest.mark.parametrize("init", ["normal", "magnitude", "constant"])
def test_an_annealed_mask_starts_as_the_fft_model(make: Make, init: str) -> None:
    before = logits_of(make())
    masks = Masks(make(), MaskSettings(ratio=0.9, init=init, schedule="anneal"))  # type: ignore[arg-type]
    assert masks.ratio == 0.0
    assert not masks.at_full_ratio
    assert torch.equal(logits_of(masks.model), before)


def test_a_constant_mask_is_in_force_at_once(make: Make) -> None:
    masks = Masks(make(), MaskSettings(ratio=0.5))
    assert masks.at_full_ratio
    assert not torch.equal(logits_of(masks.model), logits_of(make()))


def test_update_follows_scores_and_progress(make: Make) -> None:
    masks = Masks(make(), ANNEAL)
    for progress, share in ((0.0, 0.0), (0.25, 0.875), (0.5, 1.0), (1.0, 1.0)):
        masks.update(progress)
        assert masks.share == share
        assert masks.ratio == pytest.approx(0.4 * share, abs=0.01)
        assert masks.at_full_ratio == (progress >= 0.5)
        for score, mask in zip(masks.scores(), masks.masks().values(), strict=True):
            assert torch.equal(mask, keep_mask(score, 0.4 * share))


def test_the_mask_changes_in_update_alone(make: Make) -> None:
    masks = Masks(make(), MaskSettings(ratio=0.5))
    before = logits_of(masks.model)
    with torch.no_grad():
        for score in masks.scores():
            score.copy_(score.flip(0))
    assert torch.equal(logits_of(masks.model), before)
    masks.update()
    assert not torch.equal(logits_of(masks.model), before)


@pytest.mark.parametrize(("scope", "calls"), [("matrix", [1, 1]), ("model", [2])])
def test_update_gathers_the_scores_that_are_ranked_together(scope: str, calls: list[int]) -> None:
    masks = Masks(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), MaskSettings(0.5, scope=scope))  # type: ignore[arg-type]
    gathered: list[list[nn.Parameter]] = []

    @contextmanager
    def gather(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        gathered.append(list(parameters))
        with torch.no_grad():
            for parameter in parameters:
                parameter.copy_(torch.arange(16.0).view(4, 4))
        yield

    masks.update(gather=gather)
    assert [len(parameters) for parameters in gathered] == calls
    assert [id(score) for score in masks.scores()] == [id(score) for parameters in gathered for score in parameters]
    for mask in masks.masks().values():
        assert mask.tolist() == [[False] * 4, [False] * 4, [True] * 4, [True] * 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merge_leaves_exactly_the_masked_weights(make: Make, dtype: torch.dtype) -> None:
    masks = Masks(make().to(dtype), MaskSettings(ratio=0.37))
    train(masks)
    kept, before = copies(masks.masks()), logits_of(masks.model)
    merged = masks.merge_and_unload()
    assert bits(merged) == expected(make, kept, dtype)
    assert torch.equal(logits_of(merged), before)
    assert not any(parameter.requires_grad for parameter in merged.parameters())
    assert merged.state_dict().keys() == make().state_dict().keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_apply_masks_does_what_merge_does(make: Make, dtype: torch.dtype) -> None:
    masks = Masks(make().to(dtype), MaskSettings(ratio=0.37))
    applied = apply_masks(make().to(dtype), masks.masks())
    assert bits(applied) == expected(make, masks.masks(), dtype)
    assert bits(masks.merge()) == bits(applied)


def test_unload_gives_the_model_back(make: Make) -> None:
    masks = Masks(make(), MaskSettings(ratio=0.5))
    model = masks.unload()
    assert type(model) is type(make())
    assert model.state_dict().keys() == make().state_dict().keys()
    assert torch.equal(logits_of(model), logits_of(make()))
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


def test_the_fingerprint_is_the_backbones_after_training(make: Make) -> None:
    masks = Masks(make(), MaskSettings(ratio=0.5))
    train(masks, steps=2)
    assert fingerprint(masks.unload()) == fingerprint(make())


def test_a_removed_weight_can_come_back() -> None:
    masks = Masks(nn.Linear(4, 4, bias=False), MaskSettings(ratio=0.5))
    (score,), (mask,) = masks.scores(), masks.masks().values()
    removed = ~mask
    with torch.no_grad():
        score[removed] += score[removed].sign()
    masks.update()
    assert mask[removed].all()
    assert int((~mask).sum()) == 8


def test_ratios_of_halves_and_the_ratio_in_force(make_lm: Make) -> None:
    masks = Masks(make_lm(), MaskSettings(0.3, ratio_attn=0.0, ratio_mlp=0.5, scope="model"))
    halves = {"attn": [0, 0], "mlp": [0, 0]}
    for weight, mask in zip(masks.weights, masks.masks().values(), strict=True):
        assert weight.half is not None
        halves[weight.half][0] += int((~mask).sum())
        halves[weight.half][1] += mask.numel()
    assert halves["attn"][0] == 0
    assert halves["mlp"][0] == halves["mlp"][1] // 2
    assert masks.ratio == halves["mlp"][0] / (halves["attn"][1] + halves["mlp"][1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_removed_delta_is_the_weight_before_fine_tuning(make: Make, dtype: torch.dtype) -> None:
    def tuned() -> nn.Module:
        return fine_tuned(make).to(dtype)

    before = copies(dict(make().to(dtype).named_parameters()))
    masks = Masks(tuned(), MaskSettings(ratio=0.6, removes="delta"), before=before)
    train(masks)
    kept, logits = copies(masks.masks()), logits_of(masks.model)
    applied = apply_masks(tuned(), kept, before)
    assert bits(applied) == expected(tuned, kept, dtype, before)
    assert torch.equal(logits_of(applied), logits)
    assert bits(masks.merge()) == bits(applied)
    assert bits(masks.unmerge()) != bits(applied)
    assert bits(masks.unload()) == bits(tuned())


def test_the_magnitude_of_a_delta_is_that_of_what_it_removes(make: Make) -> None:
    before = copies(dict(make().named_parameters()))
    weights = dict(fine_tuned(make).named_parameters())
    masks = Masks(fine_tuned(make), MaskSettings(0.6, init="magnitude", removes="delta"), before=before)
    for name, mask in masks.masks().items():
        assert torch.equal(mask, keep_mask(weights[name] - before[name], 0.6))


def test_the_gradient_of_a_delta_is_of_what_it_removes(make: Make) -> None:
    before = copies(dict(make().named_parameters()))
    masks = Masks(fine_tuned(make), MaskSettings(ratio=0.6, removes="delta"), before=before)
    plain = apply_masks(fine_tuned(make), masks.masks(), before)
    loss_of(masks.model).backward()
    loss_of(plain).backward()
    weights = dict(fine_tuned(make).named_parameters())
    for weight, score, gradient in zip(masks.weights, masks.scores(), gradients_of(masks), strict=True):
        outer = plain.get_parameter(weight.name).grad
        assert outer is not None
        sign = torch.where(score < 0, -1.0, 1.0)
        torch.testing.assert_close(gradient, sign * (weights[weight.name] - before[weight.name]) * outer)


@pytest.mark.parametrize(
    ("before", "says"),
    [
        (None, r"removes delta needs the model before fine-tuning: give Masks\(before="),
        ({}, r"must have a weight 0\.weight of shape \(4, 4\); it has none"),
        ({"0.weight": torch.ones(4, 3)}, r"it has one of shape \(4, 3\). Give the checkpoint"),
    ],
)
def test_a_delta_needs_the_weights_before(before: dict[str, torch.Tensor] | None, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Masks(nn.Sequential(nn.Linear(4, 4)), MaskSettings(removes="delta"), before=before)


def test_a_thresholds_gradient_has_no_sign(make: Make) -> None:
    masks = Masks(make(), MaskSettings(rule="threshold", threshold=0.01))
    plain = apply_masks(make(), masks.masks())
    for score, mask in zip(masks.scores(), masks.masks().values(), strict=True):
        assert torch.equal(mask, score >= 0.01)
    loss_of(masks.model).backward()
    loss_of(plain).backward()
    weights = dict(make().named_parameters())
    for weight, gradient in zip(masks.weights, gradients_of(masks), strict=True):
        outer = plain.get_parameter(weight.name).grad
        assert outer is not None
        torch.testing.assert_close(gradient, weights[weight.name] * outer)


def test_a_soft_mask_is_hard_where_it_is_evaluated(make: Make) -> None:
    masks = Masks(make(), SOFT)
    hard = logits_of(apply_masks(make(), masks.masks()))
    assert torch.equal(logits_of(masks.model.eval()), hard)
    assert not torch.equal(logits_of(masks.model.train()), hard)


def test_a_soft_mask_is_a_sigmoid_around_the_smallest_score_kept() -> None:
    layer = nn.Linear(10, 10, bias=False)
    weight = layer.weight.detach().clone()
    masks = Masks(layer, MaskSettings(0.3, hardness="soft", temperature=2.0, init_scale=0.1))
    masks.update(0.25)
    (score,) = masks.scores()
    ranked = score.detach().abs().flatten().sort().values
    kept = torch.sigmoid((score.abs() - ranked[30]) / (0.2 * 0.75))
    torch.testing.assert_close(layer.train().weight, weight * kept)
    gradient, plain = (torch.autograd.grad(output.square().sum(), score)[0] for output in (layer.weight, weight * kept))
    torch.testing.assert_close(gradient, plain)


def test_a_soft_mask_is_hard_at_the_end(make: Make) -> None:
    masks = Masks(make(), SOFT)
    train(masks)
    assert masks.progress == 1.0
    assert torch.equal(logits_of(masks.model.train()), logits_of(apply_masks(make(), masks.masks())))


@pytest.mark.parametrize("removes", ["weight", "delta"])
def test_an_annealed_soft_mask_starts_as_the_fft_model_in_training_too(make: Make, removes: str) -> None:
    settings = MaskSettings(0.4, hardness="soft", schedule="linear", removes=removes)  # type: ignore[arg-type]
    masks = Masks(fine_tuned(make), settings, before=dict(make().named_parameters()))
    for mode in (True, False):
        assert torch.equal(logits_of(masks.model.train(mode)), logits_of(fine_tuned(make).train(mode)))


def test_a_pattern_that_does_not_divide_the_inputs_is_refused() -> None:
    with pytest.raises(UserError, match=r"pattern 2:4 needs inputs in multiples of 4, but 1 has 6"):
        Masks(nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4)), MaskSettings(0.5, pattern="2:4"))


def test_merge_can_be_undone_and_training_goes_on(make: Make) -> None:
    masks = Masks(make(), MaskSettings(ratio=0.5))
    train(masks, steps=2)
    kept, logits = copies(masks.masks()), logits_of(masks.model)
    scores = [score.detach().clone() for score in masks.scores()]
    for _ in range(2):
        merged = masks.merge()
        assert bits(merged) == expected(make, kept)
        assert torch.equal(logits_of(merged), logits)
        masks.unmerge()
        assert same(masks.masks(), kept)
        assert torch.equal(logits_of(masks.model), logits)
    assert all(torch.equal(*pair) for pair in zip(masks.scores(), scores, strict=True))
    train(masks, steps=2)
    assert not same(masks.masks(), kept)
    assert bits(masks.unload()) == bits(make())


def test_what_is_not_merged_cannot_be_unmerged(make: Make) -> None:
    masks = Masks(make())
    with pytest.raises(UserError, match="not merged, so there is nothing to unmerge"):
        masks.unmerge()


def test_masks_that_were_taken_off_can_be_put_on_again(make: Make) -> None:
    masks = Masks(make(), ANNEAL)
    train(masks, steps=3)
    kept, logits = copies(masks.masks()), logits_of(masks.model)
    assert torch.equal(logits_of(masks.unload()), logits_of(make()))
    masks.attach()
    assert same(masks.masks(), kept)
    assert torch.equal(logits_of(masks.model), logits)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(("ratio", "kept"), [(0.0, [0, 3, 1]), (0.999, [0, 1, 1])])
def test_of_one_weight_or_none_nothing_is_removed(ratio: float, kept: list[int]) -> None:
    model = nn.Sequential(nn.Linear(0, 3), nn.Linear(3, 1), nn.Linear(1, 1))
    masks = Masks(model, MaskSettings(ratio=ratio))
    assert [int(mask.sum()) for mask in masks.masks().values()] == kept
    assert model(torch.ones(2, 0)).shape == (2, 1)


def test_one_stacked_weight_is_masked_once_per_forward_and_hooks_go() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stack = nn.Parameter(torch.arange(12.0).view(3, 2, 2))

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            assert all(self.stack is self.stack for _ in range(3))
            return sum(tokens @ self.stack[expert] for expert in range(3))  # type: ignore[return-value]

    experts = Experts()
    masks = Masks(experts, MaskSettings(ratio=0.5))
    experts(torch.ones(1, 2)).sum().backward()
    assert all(score.grad is not None for score in masks.scores())
    assert experts.stack is not experts.stack  # outside of a forward nothing is kept
    with pytest.raises(RuntimeError):
        experts(torch.ones(1, 5))
    assert experts.stack is not experts.stack
    masks.unload()
    assert not experts._forward_pre_hooks
    assert not experts._forward_hooks


def test_masks_that_do_not_fit_change_nothing(make: Make) -> None:
    model = make()
    masks = Masks(make(), MaskSettings(ratio=0.3)).masks()
    name, mask = next(iter(masks.items()))
    wrong = {
        f"names {name}x, which the model has not": {f"{name}x": mask},
        f"is of torch.float32 for {name}, not of bits": {name: mask.float()},
        f"has the shape [1, {mask.shape[-1]}] for {name}": {name: mask[:1]},
    }
    for says, given in wrong.items():
        with pytest.raises(UserError) as caught:
            apply_masks(model, {**masks, **given})
        assert says in str(caught.value)
    with pytest.raises(UserError, match="before fine-tuning, and that model has none of its shape"):
        apply_masks(model, masks, {name: torch.zeros(1)})
    with pytest.raises(UserError, match=r"The mask file a/mask\.safetensors names"):
        check_fits(model, {"x": mask}, source="a/mask.safetensors")
    assert bits(model) == bits(make())
