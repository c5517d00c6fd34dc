from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from mft_ray.errors import UserError
from mft_ray.masking import Target, decoder_layers, depth, select

LLAMA_ATTENTION = [f"self_attn.{part}_proj" for part in "qkvo"]
LLAMA_MLP = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
GPT2_ATTENTION, GPT2_MLP = ["attn.c_attn", "attn.c_proj"], ["mlp.c_fc", "mlp.c_proj"]


@pytest.fixture
def model(make: Callable[[], nn.Module]) -> nn.Module:
    return make()


@pytest.fixture
def lm(make_lm: Callable[[], nn.Module]) -> nn.Module:
    return make_lm()


def layer_names(model: nn.Module, target: Target, layers: range) -> list[str]:
    gpt2 = hasattr(model, "transformer")
    stack = "transformer.h" if gpt2 else "model.layers"
    halves = {
        "attn": GPT2_ATTENTION if gpt2 else LLAMA_ATTENTION,
        "mlp": GPT2_MLP if gpt2 else LLAMA_MLP,
    }
    inner = halves["attn"] + halves["mlp"] if target == "both" else halves[target]
    return [f"{stack}.{index}.{name}" for index in layers for name in inner]


@pytest.mark.parametrize("target", ["attn", "mlp", "both"])
def test_layers_and_targets_of_language_models(lm: nn.Module, target: Target) -> None:
    everything = range(depth(lm))
    assert select(lm, "all", target) == layer_names(lm, target, everything)
    assert select(lm, "1-2", target) == layer_names(lm, target, range(1, 3))
    assert select(lm, "0", target) == layer_names(lm, target, range(1))


def test_embeddings_norms_and_head_are_never_selected(lm: nn.Module) -> None:
    assert not [name for name in select(lm) if "head" in name or "embed" in name or "norm" in name]


def test_a_layer_group_beyond_the_model_is_refused(lm: nn.Module) -> None:
    count = depth(lm)
    with pytest.raises(UserError, match=rf"layer group 1-{count} .* {count} decoder layers \(0-{count - 1}\)"):
        select(lm, f"1-{count}")


def test_a_plain_model_gives_all_its_linear_layers() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 4)), nn.LayerNorm(4))
    assert decoder_layers(model) is None
    assert depth(model) == 0
    assert select(model) == ["0", "2.0"]


@pytest.mark.parametrize(("layers", "target"), [("0-1", "both"), ("all", "attn")])
def test_a_plain_model_has_neither_layer_groups_nor_targets(layers: str, target: Target) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
    with pytest.raises(UserError, match=r"no list of decoder layers.* it has these linear layers: 0, 1"):
        select(model, layers, target)


def test_modules_by_name_in_the_order_given(model: nn.Module) -> None:
    names = select(model)
    assert select(model, modules=names[::-1]) == names[::-1]


def test_unknown_names_are_told_with_what_there_is(model: nn.Module) -> None:
    with pytest.raises(UserError, match=r"No linear layer is called nope, nada; the model has: \S+"):
        select(model, modules=["nope", select(model)[0], "nada"])
    with pytest.raises(UserError, match="none given"):
        select(model, modules=[])


def test_the_listing_writes_a_layer_once(model: nn.Module) -> None:
    with pytest.raises(UserError) as caught:
        select(model, modules=["nope"])
    assert len(str(caught.value)) < 400
    if depth(model):
        assert str(caught.value).count(".*.") == len(select(model, "0"))


def test_a_target_that_no_name_matches_is_refused() -> None:
    model = nn.Module()
    model.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))
    with pytest.raises(UserError, match=r"No linear layer matches layers all, target attn.*blocks\.1|blocks"):
        select(model, "all", "attn")


def test_a_model_without_linear_layers_is_refused() -> None:
    with pytest.raises(UserError, match="the model has: none"):
        select(nn.Sequential(nn.ReLU()))


def test_experts_inside_a_layer_are_not_taken_for_the_layers() -> None:
    def layer() -> nn.Module:
        block = nn.Module()
        block.attention = nn.Linear(2, 2)
        block.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(8))
        return block

    model = nn.Module()
    model.layers = nn.ModuleList(layer() for _ in range(2))
    assert depth(model) == 2
    assert select(model, "0", "mlp") == [f"layers.0.experts.{index}" for index in range(8)]
    assert select(model, "1", "attn") == ["layers.1.attention"]
