"""Operations are counted alike by torch and by the line through a few counts."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from mft_ray.masking import Masks, MaskSettings
from mft_ray.models.loading import new_model
from mft_ray.training.step import flops
from mft_ray.training.step.flops import Flops

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
MODELS = {
    "llama": {"model_type": "llama", **SIZES},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_head": 4, "n_layer": 2},
    "experts": {"model_type": "mixtral", **SIZES, "num_local_experts": 4, "num_key_value_heads": 2},
}
SHAPES = [(2, 9), (4, 17), (2, 17), (3, 30), (4, 23), (1, 64), (2, 9), (5, 40), (3, 17)]


def step(model: nn.Module, rows: int, length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    tokens = torch.randint(0, 50, (rows, length), generator=generator)
    present = torch.ones_like(tokens)
    present[0, length // 2 :] = 0
    model(input_ids=tokens, attention_mask=present).logits.float().sum().backward()


def counted_by_torch(model: nn.Module, rows: int, length: int) -> float:
    with FlopCounterMode(display=False, custom_mapping=flops._COUNTS) as counter:
        step(model, rows, length)
    return float(counter.get_total_flops())


@pytest.mark.parametrize("masked", [False, True], ids=["every weight", "a mask"])
@pytest.mark.parametrize("name", MODELS)
def test_a_few_counts_tell_the_rest(name: str, masked: bool) -> None:
    model = new_model(MODELS[name], 50, 0)
    if masked:
        Masks(model, MaskSettings(layers="1"))
    counts = Flops()
    for rows, length in SHAPES:
        with counts.counted("training", rows, length):
            step(model, rows, length)
    assert counts.total == pytest.approx(sum(counted_by_torch(model, *shape) for shape in SHAPES), rel=1e-9)
    assert len(counts._known["training"]) == 5  # the rest is told


def test_attention_is_counted_on_a_cpu_too() -> None:
    model = new_model({**MODELS["llama"], "num_attention_heads": 2}, 50, 0)
    short, long = (counted_by_torch(model, 1, length) / length for length in (8, 64))
    assert long > short


def test_attention_is_counted_as_torch_does() -> None:
    query, key, value = (3, 4, 7, 16), (3, 4, 9, 16), (3, 4, 9, 24)
    assert flops._forward(query, key, value) == sdpa_flop_count(query, key, value)
    gradient = (*query[:3], 24)
    assert flops._backward(gradient, query, key, value) == sdpa_backward_flop_count(gradient, query, key, value)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
def test_query_heads_that_share_a_key_cost_what_others_do(device: str) -> None:
    # Which torch 2.11 refuses to count.
    counted = []
    for heads in (8, 2):
        query, key = (torch.randn(2, n, 16, 32, device=device, dtype=torch.bfloat16) for n in (8, heads))
        counts = Flops()
        with counts.counted("attention", 2, 16):
            scaled_dot_product_attention(
                query.requires_grad_(), key, key, is_causal=True, enable_gqa=True
            ).sum().backward()
        counted.append(counts.total)
    assert counted[0] == counted[1] > 0


def test_what_lies_on_no_line_is_counted_every_time() -> None:
    counts, weight = Flops(), torch.ones(8, 8)
    for length in range(1, 8):
        with counts.counted("training", 1, length):
            for _ in range(length**3):
                torch.mm(torch.ones(1, 8), weight)
    assert counts.total == sum(2 * 64 * length**3 for length in range(1, 8))
    assert len(counts._known["training"]) == 7


def test_works_are_told_apart() -> None:
    counts, model = Flops(), new_model(MODELS["llama"], 50, 0)
    for work in ("training", "calibration"):
        with counts.counted(work, 1, 8), torch.set_grad_enabled(work == "training"):
            logits = model(input_ids=torch.ones((1, 8), dtype=torch.long)).logits
            if work == "training":
                logits.sum().backward()
    one = counts._known
    assert one["training"][1, 8, 0] > 2 * one["calibration"][1, 8, 0] > 0
