"""What is counted without content is what a real step keeps, and the operations that it takes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from mft_ray.masking import select
from mft_ray.training.counted import Counter
from mft_ray.training.step.flops import _COUNTS

LLAMA = {"hidden_size": 32, "intermediate_size": 56, "num_attention_heads": 4, "num_key_value_heads": 2}
TOKENS, ANSWERS = 21, 5


def config(model_type: str, **fields: Any) -> Any:
    return AutoConfig.for_model(model_type, vocab_size=50, num_hidden_layers=3, **fields)


def kept(model: Any, tokens: int) -> float:
    """Bytes that a real forward of the decoder keeps."""
    known = {id(tensor.untyped_storage()) for tensor in ()} | {
        tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())
    }
    held: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = model.get_decoder()(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=False)
    assert hidden is not None
    return float(sum(tensor.untyped_storage().nbytes() for tensor in held.values()))


@pytest.mark.parametrize("layers", [None, "1", "2"])
def test_what_a_step_keeps_is_counted(layers: str | None) -> None:
    architecture = config("llama", **LLAMA)
    model = AutoModelForCausalLM.from_config(architecture)
    trained: Collection[str] | None = None
    if layers is not None:
        trained = {weight.name for weight in select(model, layers, "both")}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)
    found = Counter(architecture).count(trained, TOKENS, ANSWERS, dtype=torch.float32, autocast=None)
    assert found is not None
    assert TOKENS * (sum(found.layers) + found.outside) == pytest.approx(kept(model, TOKENS), rel=0.01)
    assert [size > 0 for size in found.layers] == [number >= int(layers or 0) for number in range(3)]


def test_operations_are_those_of_a_real_step() -> None:
    architecture = config("llama", **LLAMA)
    model = AutoModelForCausalLM.from_config(architecture)
    ids = torch.zeros(1, TOKENS, dtype=torch.long)
    with FlopCounterMode(display=False, custom_mapping=_COUNTS) as counter:
        logits = model(input_ids=ids, use_cache=False).logits
        logits.sum().backward()
    found = Counter(architecture).count(None, TOKENS, TOKENS, dtype=torch.float32, autocast=None)
    assert found is not None
    assert found.forward + found.backward + found.head == pytest.approx(counter.get_total_flops(), rel=1e-6)


def test_under_autocast_copies_of_weights_are_kept_and_less_else() -> None:
    counter = Counter(config("llama", **LLAMA))
    plain = counter.count(None, TOKENS, ANSWERS, dtype=torch.float32, autocast=None)
    half = counter.count(None, TOKENS, ANSWERS, dtype=torch.float32, autocast=torch.bfloat16)
    assert plain is not None
    assert half is not None
    assert plain.casts == 0
    assert half.casts == 2 * 3 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 56)
    assert sum(half.layers) < 0.8 * sum(plain.layers)


def test_other_families_are_counted_and_what_routes_tokens_is_not() -> None:
    assert Counter(config("gpt2", n_embd=32, n_head=4)).count(None, 8, 4, dtype=torch.float32, autocast=None)
    routed = config("mixtral", **LLAMA, num_local_experts=2)
    assert Counter(routed).count(None, 8, 4, dtype=torch.float32, autocast=None) is None
