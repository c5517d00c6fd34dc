"""Every family of decoders that transformers has: what is masked in it, and that a mask does there what it should."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import bits, copies, logits_of, same, train
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from mft_ray.errors import UserError
from mft_ray.masking import Masks, MaskSettings, Target, apply_masks, select

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 13,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NO_DROPOUT: dict[str, Any] = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "dropout": 0.0}
FEW_EXPERTS: dict[str, Any] = {
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
}


def under(module: str, *names: str) -> list[str]:
    return [f"{module}.{name}" for name in names]


QKVO = under("self_attn", "q_proj", "k_proj", "v_proj", "o_proj")
GATED = under("mlp", "gate_proj", "up_proj", "down_proj")
EXPERTS = under("mlp.experts", "gate_up_proj", "down_proj")
FUSED = ["query_key_value", "dense"]
WIDE = under("mlp", "dense_h_to_4h", "dense_4h_to_h")


@dataclass(frozen=True)
class Architecture:
    """One row: the type, the weights of either half by their name in a layer, and what its config calls things."""

    kind: str
    attn: list[str] = field(default_factory=lambda: QKVO)
    mlp: list[str] = field(default_factory=lambda: GATED)
    config: dict[str, Any] = field(default_factory=dict)
    stack: str = "model.layers"

    def make(self) -> Any:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(self.kind, **SIZES | NO_DROPOUT | self.config))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn(parameter.shape)  # biases and norms start as constants
        return model.eval()

    def names(self, target: Target) -> set[str]:
        chosen = {"attn": self.attn, "mlp": self.mlp, "both": self.attn + self.mlp}[target]
        return {f"{self.stack}.{layer}.{name}" for layer in range(2) for name in chosen}


ARCHITECTURES = [
    Architecture("llama", config={"tie_word_embeddings": True}),
    Architecture("mistral"),
    Architecture("qwen2"),  # with biases
    Architecture("qwen3"),
    Architecture("gemma2"),
    Architecture("gemma3_text"),
    Architecture("olmo2"),
    Architecture("smollm3"),
    Architecture("phi3", under("self_attn", "qkv_proj", "o_proj"), under("mlp", "gate_up_proj", "down_proj")),
    Architecture(
        "phi",
        under("self_attn", "q_proj", "k_proj", "v_proj", "dense"),
        under("mlp", "fc1", "fc2"),
        {"qk_layernorm": True},
    ),
    Architecture("starcoder2", mlp=under("mlp", "c_fc", "c_proj")),
    Architecture(
        "gpt2",
        under("attn", "c_attn", "c_proj"),
        under("mlp", "c_fc", "c_proj"),
        {"n_positions": 32, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
        "transformer.h",
    ),
    Architecture("gpt_neox", under("attention", *FUSED), WIDE, stack="gpt_neox.layers"),
    Architecture("falcon", under("self_attention", *FUSED), WIDE, stack="transformer.h"),
    Architecture("bloom", under("self_attention", *FUSED), WIDE, stack="transformer.h"),
    Architecture(
        "opt",
        under("self_attn", "q_proj", "k_proj", "v_proj", "out_proj"),
        ["fc1", "fc2"],
        {"ffn_dim": 24, "word_embed_proj_dim": 16},
        "model.decoder.layers",
    ),
    Architecture("mixtral", mlp=EXPERTS, config=FEW_EXPERTS),
    Architecture("qwen3_moe", mlp=EXPERTS, config=FEW_EXPERTS),
    Architecture(
        "qwen2_moe",
        mlp=EXPERTS + under("mlp.shared_expert", "gate_proj", "up_proj", "down_proj"),
        config=FEW_EXPERTS | {"shared_expert_intermediate_size": 12},
    ),
    Architecture("gpt_oss", mlp=EXPERTS, config=FEW_EXPERTS),
    Architecture(
        "gemma4_text",
        mlp=GATED + under("experts", "gate_up_proj", "down_proj"),
        config=FEW_EXPERTS | {"enable_moe_block": True, "top_k_experts": 2, "hidden_size_per_layer_input": 0},
    ),
]


@pytest.fixture(params=ARCHITECTURES, ids=lambda architecture: architecture.kind)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    chosen: Architecture = request.param
    return chosen


def tied(model: Any) -> bool:
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight


@pytest.mark.parametrize("target", ["attn", "mlp", "both"])
def test_exactly_the_projections_are_selected(architecture: Architecture, target: Target) -> None:
    weights = select(architecture.make(), "all", target)
    assert len(weights) == len({weight.name for weight in weights})
    # No router, norm, embedding or head.
    assert {weight.name.removesuffix(".weight") for weight in weights} == architecture.names(target)


def test_a_mask_is_trained_merged_saved_and_loaded(architecture: Architecture, tmp_path: Path) -> None:
    settings = MaskSettings(ratio=0.4)
    masks = Masks(architecture.make(), settings)
    first = copies(masks.masks())
    train(masks, steps=2)
    learned, logits = copies(masks.masks()), logits_of(masks.model)
    for name, mask in learned.items():
        assert not torch.equal(mask, first[name]), name

    applied = apply_masks(architecture.make(), learned)
    assert torch.equal(logits_of(applied), logits)
    assert not torch.equal(logits_of(architecture.make()), logits)

    model: Any = masks.merge()
    assert bits(model) == bits(applied)
    assert torch.equal(logits_of(model), logits)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").eval()
    assert torch.equal(logits_of(loaded), logits)
    assert tied(architecture.make()) == tied(model) == tied(loaded)

    masks.unmerge()
    assert same(masks.masks(), learned)
    assert bits(masks.unload()) == bits(architecture.make())


def test_the_table_has_tied_and_untied_embeddings() -> None:
    assert {tied(architecture.make()) for architecture in ARCHITECTURES[:2]} == {True, False}


class Unheard(nn.Module):
    """An architecture that nobody has named: its layers are stages, its halves mix and lift."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(13, 8)
        self.stages = nn.ModuleList(
            nn.ModuleDict({"mix": nn.Linear(8, 8), "lift": nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))})
            for _ in range(3)
        )
        self.out = nn.Linear(8, 13)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        state = self.tokens(tokens)
        for stage in self.stages:
            state = state + stage["mix"](state).cumsum(dim=1)  # type: ignore[index]
            state = state + stage["lift"](state)  # type: ignore[index]
        result: torch.Tensor = self.out(state)
        return result


def test_an_architecture_nobody_named_is_masked_by_the_names_given() -> None:
    masks = Masks(Unheard(), MaskSettings(ratio=0.4), modules=["stages.1.mix", "stages.2.lift.0", "out"])
    assert list(masks.masks()) == ["stages.1.mix.weight", "stages.2.lift.0.weight", "out.weight"]
    train(masks, steps=2)
    logits = logits_of(masks.model)
    assert torch.equal(logits_of(apply_masks(Unheard(), masks.masks())), logits)
    assert bits(masks.unload()) == bits(Unheard())


def test_an_architecture_nobody_named_has_layers_but_no_halves() -> None:
    names = [f"stages.{layer}.{part}.weight" for layer in (1, 2) for part in ("mix", "lift.0", "lift.2")]
    assert [weight.name for weight in select(Unheard(), "1-2")] == names
    listing = r"target attn\. Give the modules by name; the model has: stages\.\*\.mix, stages\.\*\.lift\.0, .*, out\.$"
    with pytest.raises(UserError, match=listing):
        select(Unheard(), "all", "attn")
