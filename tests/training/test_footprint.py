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
from mft_ray.training.parts import Weights
from mft_ray.training.step.answer_loss import logits_at_once

SMALL = Shape((100, 100, 100, 100), 10, 1000)


@settings(deadline=None)
@given(tokens=st.integers(1, 4000), more=st.integers(1, 500), lowest=st.integers(0, 3), heads=st.sampled_from([0, 4]))
def test_an_example_takes_more_the_longer_it_is(tokens: int, more: int, lowest: int, heads: int) -> None:
    shape = replace(SMALL, heads=heads)
    for checkpointing in (False, True):
        assert shape.training(tokens, lowest, checkpointing) < shape.training(tokens + more, lowest, checkpointing)
    assert shape.scoring(tokens) < shape.scoring(tokens + more)
    assert shape.scoring(tokens, more) < shape.scoring(tokens, more + 1)
    # The backward pass needs what the forward one made.
    assert shape.scoring(tokens) < shape.training(tokens, lowest) + shape.logits(tokens, "cpu", whole=True)
    assert shape.training(tokens, lowest, checkpointing=True) <= shape.training(tokens, 0) * 1.5


def test_what_is_below_the_first_trained_layer_costs_nothing() -> None:
    assert SMALL.training(8, lowest=3) == 4 * 8 * 1.8 * 100
    assert SMALL.training(8, lowest=0) == 4 * 8 * 1.8 * 400
    assert SMALL.training(8, checkpointing=True) == 4 * 8 * (2 * 10 * 4 + 1.8 * 100)
    counted = replace(SMALL, kept=(1.0, 2.0, 3.0, 4.0, 10.0))
    assert counted.training(8, lowest=2) == 8 * (3 + 4 + 10)
    assert counted.training(8, checkpointing=True) == 8 * (4 * 2 * 10 * 4 + 4 + 10)


def test_logits_are_bounded_where_they_come_in_pieces() -> None:
    most = logits_at_once("cpu")
    assert SMALL.logits(50, "cpu", whole=True) == 3 * 4 * 50 * 1000
    pieces = replace(SMALL, pieces=True)
    assert pieces.logits(most, "cpu", whole=True) == 3 * 4 * most
    assert pieces.logits(most, "cpu", whole=False) == (2 * 1000 + 1) * 4 * most  # ZeRO-3


def make(model_type: str, **fields: object) -> PreTrainedModel:
    config = AutoConfig.for_model(model_type, vocab_size=50, num_hidden_layers=3, **fields)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


LLAMA = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}


def test_a_shape_is_read_off_any_model() -> None:
    # q, k, v, o and gate, up, down: inputs and outputs.
    layer = (32 + 32) + 2 * (32 + 16) + (32 + 32) + 3 * (32 + 64)
    assert Shape.of(make("llama", **LLAMA)) == Shape((layer,) * 3, 32, 50, pieces=True)
    eager = make("llama", **LLAMA, attn_implementation="eager")
    assert Shape.of(eager).heads == 4
    gpt2 = make("gpt2", n_embd=32, n_head=4)
    assert Shape.of(gpt2) == Shape(((32 + 96) + (32 + 32) + 2 * (32 + 128),) * 3, 32, 50, pieces=True)


def job(**more: object) -> TrainJob:
    return TrainJob("any", "m", "d", "o", TrainConfig(), EvaluationConfig(), ScalingConfig(), **more)  # type: ignore[arg-type]


def test_what_is_trained_is_counted() -> None:
    model = make("llama", **LLAMA)
    count = model.num_parameters()
    full = Trained.by(job(), model)
    assert full == Trained(Weights(count, 4, count, added=False, head=50 * 32))
    masked = Trained.by(job(mask=MaskSettings(layers="1-2", target="attn")), model)
    scores = 2 * (2 * 32 * 32 + 2 * 32 * 16)
    assert masked == Trained(Weights(count, 4, scores, added=True, masked=True, effective=4), lowest=1)
    lora = Trained.by(job(lora=LoraConfig(rank=2, layers="2", target="mlp")), model)
    assert lora == Trained(Weights(count, 4, 3 * 2 * (32 + 64), added=True), lowest=2)
    # Gradient and Adam's two moments: 12 bytes; a score, its mask and W * M beside that.
    assert (
        full.bytes(job(), "cpu", 4.0 * count) == 12 * count + 4 * 50 * 32
    )  # and that of the head, beside those added up
    assert masked.bytes(job(), "cpu", 4.0 * count) == 21 * scores
    assert full.bytes(job(), "cpu", 2.0 * count) == 14 * count + 4 * 50 * 32  # a bf16 checkpoint, in fp32 from now on
    less = replace(job(), train=TrainConfig(optimizer="rmsprop"))
    assert Trained.by(less, model).bytes(less, "cpu", 4.0 * count) == 8 * count + 4 * 50 * 32
    sharded = replace(job(), scaling=ScalingConfig(workers=4, zero_stage=2))
    # A quarter of gradients, Adam's moments and a copy of the weights; and what gradients are reduced in.
    assert full.bytes(sharded, "cpu", 4.0 * count) == (4 * 4 / 4 + 4) * count
    assert full.bytes(sharded, "cuda", 4.0 * count) > 2e9  # what DeepSpeed sets aside
    pieces = replace(job(), scaling=ScalingConfig(workers=4, zero_stage=3))
    whole = replace(pieces, scaling=ScalingConfig(workers=4, zero_stage=2))
    assert full.bytes(pieces, "cpu", 0.0) - full.bytes(pieces, "cpu", 4.0 * count) == 4 * count  # it makes room
    assert full.bytes(whole, "cpu", 0.0) - full.bytes(whole, "cpu", 4.0 * count) == 4 * count
    assert masked.bytes(replace(job(), train=TrainConfig(steps=0)), "cpu", 4.0 * count) == 9 * scores


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
    shape = Shape.of(model)
    estimated = rows * (shape.training(tokens) + shape.logits(tokens, "cpu", whole=True))
    assert 0.5 * estimated < sum(held.values()) < estimated
