"""What a job is estimated to need, and the batches that follow, without workers."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from mft_ray.config import EvaluationConfig, LoraConfig, ScalingConfig, TrainConfig
from mft_ray.masking import MaskSettings
from mft_ray.training.footprint import Shape, Trained, _scoring
from mft_ray.training.job import Sizes, TrainJob

SMALL = Shape((100, 100, 100, 100), 10, 1000)


@settings(deadline=None)
@given(tokens=st.integers(1, 4000), more=st.integers(1, 500), lowest=st.integers(0, 3), heads=st.sampled_from([0, 4]))
def test_an_example_takes_more_the_longer_it_is(tokens: int, more: int, lowest: int, heads: int) -> None:
    shape = replace(SMALL, heads=heads)
    for checkpointing in (False, True):
        assert shape.training(tokens, lowest, checkpointing) < shape.training(tokens + more, lowest, checkpointing)
    assert shape.scoring(tokens) < shape.scoring(tokens + more)
    assert shape.scoring(tokens, more) < shape.scoring(tokens, more + 1)
    assert shape.scoring(tokens) < shape.training(tokens, lowest)  # the backward pass needs what the forward one made
    assert shape.training(tokens, lowest, checkpointing=True) <= shape.training(tokens, 0) * 1.5


def test_what_is_below_the_first_trained_layer_costs_nothing() -> None:
    assert SMALL.training(8, lowest=3) == 4 * 8 * (1.8 * 100 + 5 * 1000)
    assert SMALL.training(8, lowest=0) == 4 * 8 * (1.8 * 400 + 5 * 1000)
    assert SMALL.training(8, checkpointing=True) == 4 * 8 * (2 * 10 * 4 + 1.8 * 100 + 5 * 1000)


def make(model_type: str, **fields: object) -> PreTrainedModel:
    config = AutoConfig.for_model(model_type, vocab_size=50, num_hidden_layers=3, **fields)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


LLAMA = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}


def test_a_shape_is_read_off_any_model() -> None:
    # q, k, v, o and gate, up, down: inputs and outputs.
    layer = (32 + 32) + 2 * (32 + 16) + (32 + 32) + 3 * (32 + 64)
    assert Shape.of(make("llama", **LLAMA)) == Shape((layer,) * 3, 32, 50)
    eager = make("llama", **LLAMA, attn_implementation="eager")
    assert Shape.of(eager).heads == 4
    gpt2 = make("gpt2", n_embd=32, n_head=4)
    assert Shape.of(gpt2) == Shape(((32 + 96) + (32 + 32) + 2 * (32 + 128),) * 3, 32, 50)


def job(**more: object) -> TrainJob:
    return TrainJob("any", "m", "d", "o", TrainConfig(), EvaluationConfig(), ScalingConfig(), **more)  # type: ignore[arg-type]


def test_what_is_trained_is_counted() -> None:
    model = make("llama", **LLAMA)
    full = Trained.by(job(), model)
    assert full == Trained(model.num_parameters())
    masked = Trained.by(job(mask=MaskSettings(layers="1-2", target="attn")), model)
    assert (masked.weights, masked.lowest) == (2 * (2 * 32 * 32 + 2 * 32 * 16), 1)
    lora = Trained.by(job(lora=LoraConfig(rank=2, layers="2", target="mlp")), model)
    assert (lora.weights, lora.lowest) == (3 * 2 * (32 + 64), 2)
    # Gradient, Adam's two moments and a copy: 16 bytes; scores and W * M beside that.
    assert full.bytes(job(), "cpu") == 16 * full.weights
    assert masked.bytes(job(), "cpu") == 24 * masked.weights
    less = replace(job(), train=TrainConfig(optimizer="rmsprop"))
    assert full.bytes(less, "cpu") == 12 * full.weights
    sharded = replace(job(), scaling=ScalingConfig(workers=4, zero_stage=2))
    assert full.bytes(sharded, "cpu") == 10 * full.weights
    assert full.bytes(sharded, "cuda") > 4e9  # what DeepSpeed sets aside
    assert masked.bytes(replace(job(), train=TrainConfig(steps=0)), "cpu") == 8 * masked.weights


def test_scoring_stays_within_its_ceiling_and_never_stops() -> None:
    each = SMALL.scoring(20)
    assert _scoring(SMALL, [5, 20, 7], 0, 1e12, 64) == 64
    assert _scoring(SMALL, [5, 20, 7], 0, 9.5 * each, 64) == 9
    assert _scoring(SMALL, [5, 20, 7], 0, -1.0, 64) == 1
    assert _scoring(SMALL, [], 0, 0.0, 64) == 1


def test_sizes_shrink_to_one_example_and_no_further() -> None:
    sizes: Sizes | None = Sizes(1200, 64, longest=200)
    seen = []
    while sizes is not None:
        seen.append((sizes.training, sizes.scoring))
        sizes = sizes.smaller()
    assert seen == [(1200, 64), (600, 16), (300, 4), (200, 1)]
    assert Sizes(8, 3).within(Sizes(4, 9)) == Sizes(4, 3)
    assert Sizes(8, 3).within(None) == Sizes(8, 3)
    assert Sizes(8, 3, longest=6).within(Sizes(4, 9)) == Sizes(6, 3, longest=6)  # as longest as another job's may be


def test_a_measured_step_takes_no_more_than_estimated() -> None:
    """What autograd saves for the backward pass, counted. Passing copies come on top; there is room for them."""
    model, rows, tokens = make("llama", **LLAMA), 4, 24
    held: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(0, 50, (rows, tokens))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(input_ids=ids, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
    estimated = rows * Shape.of(model).training(tokens)
    assert 0.5 * estimated < sum(held.values()) < estimated
