"""Every family of decoders that transformers has, tiny, with its weights by their names in a layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mft_ray.masking import Target

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
