"""Memory by part, against what a person counts on a sheet of paper."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from mft_ray.config import ScalingConfig
from mft_ray.training.parts import Parts, Weights, of_training

FFT = Weights(1000, 4, 1000, added=False)
MASK = Weights(1000, 2, 100, added=True, masked=True, effective=2)


def parts(weights: Weights, stage: int, workers: int = 4, activations: float = 1e6, **more: bool) -> Parts:
    scaling = ScalingConfig(workers=workers, zero_stage=stage)  # type: ignore[arg-type]
    return of_training(weights, scaling, activations, 10.0, **{"accumulates": True, "gpu": False, **more})


@pytest.mark.parametrize(
    ("stage", "held", "gradients", "optimizer"),
    [(0, 4000, 4000, 8000), (1, 4000, 4000, 3000), (2, 4000, 1000, 3000), (3, 1000, 1000, 3000)],
)
def test_each_stage_divides_more(stage: int, held: float, gradients: float, optimizer: float) -> None:
    found = parts(FFT, stage)
    assert (found.weights, found.gradients, found.optimizer) == (held, gradients, optimizer)
    assert found.scores == 0
    assert found.gathered == (4000 if stage == 3 else 0)
    assert found.total == pytest.approx(sum(vars(found).values()))


def test_a_mask_has_scores_bits_and_what_is_kept() -> None:
    found = parts(MASK, 0, workers=1)
    assert (found.weights, found.scores, found.gradients, found.optimizer) == (2000, 100 * (4 + 1 + 2), 400, 800)
    assert (found.activations, found.logits) == (1e6, 10)
    sharded = parts(Weights(1000, 2, 100, added=True, masked=True), 3)
    assert sharded.scores == 100 * (1 + 1)  # bits are whole everywhere
    assert sharded.gathered == 2 * 100 + 2 * 1000 + 4 * 100  # W * M of a forward, weights and scores


def test_gradients_are_reduced_when_activations_are_gone() -> None:
    """Where these are small, that is where a step takes the most."""
    found = parts(FFT, 1, activations=1.0)
    assert (found.buckets, found.activations, found.logits) == (4000, 0, 0)
    assert parts(FFT, 1).buckets == 0
    assert parts(FFT, 1, accumulates=False).gradients == 0
    assert parts(FFT, 0, workers=1, activations=1.0).buckets == 0  # nobody to add them up with


def test_the_heads_gradient_is_there_with_all_activations() -> None:
    head = Weights(1000, 4, 1000, added=False, head=100)
    assert parts(head, 1).gradients == parts(FFT, 1).gradients + 400
    assert parts(head, 2).gradients == parts(FFT, 2).gradients + 800  # once more in the bucket
    assert parts(head, 1).logits < parts(FFT, 1).logits


def test_a_gpu_sets_buckets_aside_whole() -> None:
    assert parts(FFT, 2, gpu=True).buckets == 2e9
    assert parts(FFT, 0, gpu=True).buckets == 0


def test_the_host_of_a_gpu_takes_the_optimizer() -> None:
    offloaded = ScalingConfig(workers=4, zero_stage=2, offload="cpu")
    on_gpu, on_cpu = (of_training(FFT, offloaded, 1e6, 10.0, accumulates=True, gpu=gpu) for gpu in (True, False))
    assert on_gpu.optimizer == 0
    assert on_cpu.optimizer == parts(FFT, 2).optimizer  # there it is the same memory
    assert on_gpu.weights == 4000


def test_a_mask_that_is_cut_once_has_nothing_to_train() -> None:
    found = parts(MASK, 0, steps=False)
    assert found.gradients == found.optimizer == 0


def test_what_is_held_in_two_bytes_takes_two() -> None:
    light = Weights(1000, 2, 100, added=True, masked=True, states=2, width=2)
    found = parts(light, 0, workers=1)
    assert (found.scores, found.gradients, found.optimizer) == (100 * (2 + 1), 200, 200)


# Every tensor that is alive after two steps of a small model under ZeRO-3, in bytes of a trained number, by dtype.
# Buffers of a bucket's size do not grow with the model.
ALIVE = """
import gc, json, os, sys
from collections import Counter
os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", DS_ACCELERATOR="cpu")
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
import torch
from mft_ray.config import ScalingConfig, TrainConfig
from mft_ray.masking import Masks, MaskSettings
from mft_ray.models.loading import new_model
from mft_ray.training.engine import build_engine, gathered
from mft_ray.training.parts import _BUCKET

torch.distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
model = new_model({"model_type": "llama", **sizes}, 1000, seed=0)
masks = Masks(model.to(torch.bfloat16), MaskSettings()) if sys.argv[1] == "mft" else None
trained = masks.scores() if masks else list(model.parameters())
numbers = sum(parameter.numel() for parameter in trained)
scaling = ScalingConfig(zero_stage=3, compute="bfloat16")
engine = build_engine(model, trained, TrainConfig(batch_size=1), scaling)
for _ in range(2):
    loss = engine(input_ids=torch.zeros((1, 8), dtype=torch.long), use_cache=False).logits.float().mean()
    engine.backward(loss)
    engine.step()
    if masks:
        masks.update(1.0, gather=gathered)
del loss
gc.collect()
storages = {}
for tensor in gc.get_objects():
    if type(tensor) in (torch.Tensor, torch.nn.Parameter):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = (str(tensor.dtype), storage.nbytes())
found = Counter()
for dtype, size in storages.values():
    if size < 2 * _BUCKET:
        found[dtype] += size
print(json.dumps({dtype: size / numbers for dtype, size in found.items() if size > 0.01 * numbers}))
"""


@pytest.mark.parametrize("method", ["fft", "mft"])
def test_what_deepspeed_keeps_is_what_is_counted(method: str) -> None:
    done = subprocess.run([sys.executable, "-c", ALIVE, method], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    masked = method == "mft"
    weights = Weights(0 if masked else 1000, 4, 1000, added=masked, masked=masked)
    counted = parts(weights, 3, workers=1, activations=0.0)
    bits = 1000 * masked
    assert 1000 * found["torch.float32"] == pytest.approx(
        counted.weights + counted.scores - bits + counted.gradients + counted.optimizer, rel=0.01
    )
    assert 1000 * found.get("torch.bool", 0) == pytest.approx(bits, rel=0.01)
