"""Operations are counted alike by torch and by the line through a few counts."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mft_ray.masking import Masks, MaskSettings
from mft_ray.models.loading import new_model
from mft_ray.training.step import flops
from mft_ray.training.step.flops import Flops

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
MODELS = {
    "llama": {"model_type": "llama", **SIZES},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_head": 4, "n_layer": 2},
    "experts": {"model_type": "mixtral", **SIZES, "num_local_experts": 4, "num_key_value_heads": 2},
}
SHAPES = [(2, 9), (4, 17), (2, 17), (3, 30), (4, 23), (1, 64), (2, 9)]


def step(model: nn.Module, rows: int, length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    tokens = torch.randint(0, 50, (rows, length), generator=generator)
    present = torch.ones_like(tokens)
    present[0, length // 2 :] = 0
    model(input_ids=tokens, attention_mask=present).logits.float().sum().backward()


def counted_by_torch(model: nn.Module, rows: int, length: int) -> float:
    with FlopCounterMode(display=False, custom_mapping=flops._ON_CPU) as counter:
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
    assert len(counts._known["training"]) == 4  # three lengths, and 17 twice before the third was known


def test_attention_is_counted_on_a_cpu_too() -> None:
    model = new_model({**MODELS["llama"], "num_attention_heads": 2}, 50, 0)
    short, long = (counted_by_torch(model, 1, length) / length for length in (8, 64))
    assert long > short


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
