from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import Make
from torch import nn

from mft_ray.errors import UserError
from mft_ray.masking import Target, Weight, decoder_layers, depth, select

LLAMA = {
    "attn": [f"self_attn.{part}_proj" for part in "qkvo"],
    "mlp": ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
}
GPT2 = {"attn": ["attn.c_attn", "attn.c_proj"], "mlp": ["mlp.c_fc", "mlp.c_proj"]}


@pytest.fixture
def model(make: Make) -> nn.Module:
    return make()


@pytest.fixture
def lm(make_lm: Make) -> nn.Module:
    return make_lm()


def layer_weights(model: nn.Module, target: Target, layers: range) -> list[Weight]:
    gpt2 = hasattr(model, "transformer")
    stack, halves, input_dim = ("transformer.h", GPT2, 0) if gpt2 else ("model.layers", LLAMA, 1)
    return [
        Weight(f"{stack}.{layer}.{name}.weight", layer, half, input_dim)  # type: ignore[arg-type]
        for layer in layers
        for half, names in halves.items()
        for name in names
        if target in ("both", half)
    ]


def names(weights: list[Weight]) -> list[str]:
    return [weight.name for weight in weights]


@pytest.mark.parametrize("target", ["attn", "mlp", "both"])
def test_layers_and_targets_of_language_models(lm: nn.Module, target: Target) -> None:
    assert select(lm, "all", target) == layer_weights(lm, target, range(depth(lm)))
    assert select(lm, "1-2", target) == layer_weights(lm, target, range(1, 3))
    assert select(lm, "0", target) == layer_weights(lm, target, range(1))


def test_embeddings_norms_and_head_are_never_selected(lm: nn.Module) -> None:
    assert not [name for name in names(select(lm)) if "head" in name or "embed" in name or "norm" in name]


def test_a_layer_group_beyond_the_model_is_refused(lm: nn.Module) -> None:
    count = depth(lm)
    with pytest.raises(UserError, match=rf"layer group 1-{count} .* {count} decoder layers \(0-{count - 1}\)"):
        select(lm, f"1-{count}")


def test_a_plain_model_gives_all_its_linear_layers() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 4)), nn.LayerNorm(4))
    assert decoder_layers(model) is None
    assert depth(model) == 0
    assert select(model) == [Weight("0.weight", None, None, 1), Weight("2.0.weight", None, None, 1)]
    assert select(nn.Linear(3, 4)) == [Weight("weight", None, None, 1)]


@pytest.mark.parametrize(("layers", "target"), [("0-1", "both"), ("all", "attn")])
def test_a_plain_model_has_neither_layer_groups_nor_targets(layers: str, target: Target) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
    with pytest.raises(UserError, match=r"no list of decoder layers.* it has these linear layers: 0, 1"):
        select(model, layers, target)


def test_modules_or_parameters_by_name_come_in_model_order(model: nn.Module) -> None:
    everything = select(model)
    given = [weight.module if rank % 2 else weight.name for rank, weight in enumerate(everything)]
    assert select(model, names=given[::-1]) == everything


def test_a_weight_outside_the_layers_can_be_named() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))
    model.head = nn.Linear(2, 2)
    assert names(select(model)) == ["layers.0.weight", "layers.1.weight"]
    assert select(model, names=["head"]) == [Weight("head.weight", None, None, 1)]


def test_unknown_names_are_told_with_what_there_is(model: nn.Module) -> None:
    with pytest.raises(UserError, match=r"No linear layer is called nada, nope; the model has: \S+"):
        select(model, names=["nope", select(model)[0].module, "nada"])
    with pytest.raises(UserError, match="none given"):
        select(model, names=[])


def test_the_listing_writes_a_layer_once(model: nn.Module) -> None:
    with pytest.raises(UserError) as caught:
        select(model, names=["nope"])
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


def holding(**modules: nn.Module) -> nn.Module:
    block = nn.Module()
    for name, module in modules.items():
        block.add_module(name, module)
    return block


def test_experts_inside_a_layer_are_not_taken_for_the_layers() -> None:
    def layer() -> nn.Module:
        return holding(attention=nn.Linear(2, 2), experts=nn.ModuleList(nn.Linear(2, 2) for _ in range(8)))

    model = holding(layers=nn.ModuleList(layer() for _ in range(2)))
    assert depth(model) == 2
    assert names(select(model, "0", "mlp")) == [f"layers.0.experts.{index}.weight" for index in range(8)]
    assert names(select(model, "1", "attn")) == ["layers.1.attention.weight"]


class StackedExperts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.zeros(3, 5, 6))
        self.up_bias = nn.Parameter(torch.zeros(3, 5))
        self.scale = nn.Parameter(torch.ones(3))


@pytest.mark.parametrize(("transposed", "input_dim"), [(False, 2), (True, 1)])
def test_stacked_experts_are_one_weight_and_their_biases_none(transposed: bool, input_dim: int) -> None:
    experts: Any = StackedExperts()
    experts.is_transposed = transposed
    model = holding(layers=nn.ModuleList([holding(mlp=holding(experts=experts))]))
    assert select(model) == [Weight("layers.0.mlp.experts.up", 0, "mlp", input_dim)]


def test_llama_4_transposes_without_saying_so() -> None:
    experts: Any = type("Llama4TextExperts", (StackedExperts,), {})()
    assert select(holding(layers=nn.ModuleList([holding(experts=experts)])))[0].input_dim == 1


@pytest.mark.parametrize("router", ["gate", "router", "shared_expert_gate"])
@pytest.mark.parametrize("inside", [False, True], ids=["linear", "holds one"])
@pytest.mark.parametrize("beside", ["experts", "input_linear"])
def test_a_router_is_never_selected(router: str, inside: bool, beside: str) -> None:
    # Some name what a router chooses among "experts", of some only the class says it.
    parts = {router: holding(proj=nn.Linear(6, 3)) if inside else nn.Linear(6, 3), beside: StackedExperts()}
    model = holding(layers=nn.ModuleList([holding(mlp=holding(**parts))]))
    assert names(select(model)) == [f"layers.0.mlp.{beside}.up"]


def test_a_gate_without_experts_is_a_projection() -> None:
    model = holding(layers=nn.ModuleList([holding(mlp=holding(gate=nn.Linear(6, 3), up=nn.Linear(6, 3)))]))
    assert names(select(model)) == ["layers.0.mlp.gate.weight", "layers.0.mlp.up.weight"]
