"""What a paper-scale recipe needs on each GPU, on the host and on disk, by formula: the comments in the recipes.

    .venv/bin/python benchmarks/paper_memory.py tune_spaces/paper/llama2-7b-math.yaml
    .venv/bin/python benchmarks/paper_memory.py --count fft
    .venv/bin/python benchmarks/paper_memory.py --count mft

GB are 10^9 bytes. Weights are counted on the architecture itself, without memory. What DeepSpeed keeps for each of them
is what --count finds: every tensor that is alive after two steps of a small model under ZeRO-3, on a CPU. Activations
are an estimate: nobody has run these recipes on GPUs here.
"""

from __future__ import annotations

import argparse
import gc
import os
import textwrap
from collections import Counter
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mft_ray.config import Config, ScalingConfig, TrainConfig, load_config
from mft_ray.masking import Masks, MaskSettings, select
from mft_ray.models.loading import new_model

SHAPES: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-2-7b-hf": {"intermediate_size": 11008, "vocab_size": 32000},
    "meta-llama/Llama-3.1-8B": {"intermediate_size": 14336, "vocab_size": 128256, "num_key_value_heads": 8},
}
# DeepSpeed's copy of the weight and its own, gradient, two states of Adam; all fp32 and sharded: --count.
PER_TRAINABLE = 5 * 4
PER_CHECKPOINTED = 3 * 4  # the weight and Adam's states
# DeepSpeed's defaults, in numbers: stage3_max_live_parameters, of 4 bytes at most, and reduce_bucket_size.
LIVE, BUCKET = 10**9, 5 * 10**8
RESERVE = 8 * 10**9  # CUDA, NCCL, and gaps that the allocator leaves


def counts(config: Config) -> tuple[LlamaConfig, int, int]:
    """Return the recipe's architecture, its weights, and those that the mask is learned on."""
    llama = LlamaConfig(**SHAPES[config.model.path or ""])
    with torch.device("meta"):
        model = LlamaForCausalLM(llama)
    masked = select(model, config.mask.layers, config.mask.target)
    selected = sum(model.get_parameter(weight.name).numel() for weight in masked)
    return llama, sum(parameter.numel() for parameter in model.parameters()), selected


def per_gpu(config: Config, method: str) -> dict[str, float]:
    """Return the bytes on one GPU at the peak of a step, by what they are for."""
    llama, weights, selected = counts(config)
    fft = method == "fft"
    train = config.fft.train if fft else config.train
    workers = config.scaling.workers
    if fft:
        states = {"weights, gradients, Adam": PER_TRAINABLE * weights / workers}
        buckets = (4 + 2) * BUCKET  # gradients of norms and embeddings in fp32, of the rest in bf16
    else:
        states = {
            "frozen weights": 2 * weights / workers,
            "scores, gradients, Adam": PER_TRAINABLE * selected / workers,
            "masks": 1.0 * selected,  # whole on every GPU
        }
        buckets = 4 * BUCKET
    tokens = train.micro_batch_tokens or config.data.max_length
    return {
        **states,
        "gathered": 4 * min(LIVE, weights),
        "buckets": buckets,
        "activations": activations(llama, tokens, stream=4 if fft else 2),
        "reserve": RESERVE,
    }


def activations(llama: LlamaConfig, tokens: int, stream: int) -> float:
    """Estimate activations with gradient checkpointing: layers' inputs, one layer at work, and the logits.

    Of a layer: norms in fp32, projections and their inputs in bf16, some 24 bytes a hidden and 8 an intermediate
    number, and as much again for their gradients. Of the logits: bf16 and fp32, both with gradient, and the softmax.
    """
    inputs = llama.num_hidden_layers * llama.hidden_size * stream
    layer = 2 * (24 * llama.hidden_size + 8 * llama.intermediate_size)
    return float(tokens * (inputs + layer + 16 * llama.vocab_size))


def comment(config: Config) -> list[str]:
    """Return what a recipe says of its needs, line by line."""
    _, weights, selected = counts(config)
    workers = config.scaling.workers
    lines = [f"Needs on each of {workers} GPUs, in GB, by formula and not measured (benchmarks/paper_memory.py):"]
    for method in ("fft", "mft"):
        parts = {name: value / 1e9 for name, value in per_gpu(config, method).items()}
        listed = ", ".join(f"{name} {value:.1f}" for name, value in parts.items())
        lines += textwrap.wrap(
            f"{method.upper()} {sum(parts.values()):.0f}: {listed}", 116, initial_indent="  ", subsequent_indent="    "
        )
    loading, host = 4 * weights / 1e9, 4 * weights * workers / 1e9
    lines += [
        f"  {loading:.0f} while FFT's model is loaded: each worker has it whole at first, in host memory before that",
        f"    ({host:.0f} if all workers are on one machine).",
        f"On disk: two checkpoints of {PER_CHECKPOINTED * weights / 1e9:.0f} GB (FFT) or "
        f"{PER_CHECKPOINTED * selected / 1e9:.0f} GB (MFT), and models of {2 * weights / 1e9:.0f} GB.",
    ]
    return lines


def count(method: str) -> dict[str, float]:
    """Return what is alive after two steps of a small model on one worker, in bytes per trainable number by dtype.

    Buffers of the bucket's size are left out, for they do not grow with the model.
    """
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", DS_ACCELERATOR="cpu")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    from mft_ray.training.engine import build_engine, gathered

    torch.distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
    model = new_model({"model_type": "llama", **sizes}, 1000, seed=0)
    masks = Masks(model.to(torch.bfloat16), MaskSettings()) if method == "mft" else None
    trainable = masks.scores() if masks else list(model.parameters())
    numbers = sum(parameter.numel() for parameter in trainable)
    scaling = ScalingConfig(zero_stage=3, compute="bfloat16")
    engine = build_engine(model, trainable, TrainConfig(batch_size=1), scaling)
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
            storages[storage.data_ptr()] = (str(tensor.dtype).removeprefix("torch."), storage.nbytes())
    found: Counter[str] = Counter()
    for dtype, size in storages.values():
        if size < 2 * BUCKET:
            found[dtype] += size
    engine.destroy()
    torch.distributed.destroy_process_group()
    return {dtype: size / numbers for dtype, size in found.items() if size > 0.01 * numbers}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("recipe", nargs="?", help="YAML file among tune_spaces/paper")
    arguments.add_argument("--count", choices=("fft", "mft"))
    options = arguments.parse_args()
    if options.count:
        for dtype, size in sorted(count(options.count).items()):
            print(f"{dtype}: {size:.2f} bytes per trainable number")
        return
    if not options.recipe:
        arguments.error("give a recipe or --count")
    print("\n".join(comment(load_config(options.recipe))))


if __name__ == "__main__":
    main()
