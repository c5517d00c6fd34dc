"""What a masked training step costs, over the same step with the selected weights plainly trainable.

    .venv/bin/python benchmarks/step.py --model FOLDER
    .venv/bin/python benchmarks/step.py --model FOLDER --compute bfloat16 --accumulation 4
    .venv/bin/python benchmarks/step.py --shape llama2-7b --dtype bfloat16 --tokens 2048 --device cuda --checkpointing

All variants run in one process, on one model, in turn, round after round. Seconds are the median of all steps; the
ratio is the median over rounds of a variant's fastest step over the floor's fastest step of the same round, which what
else the machine does disturbs least.
--reference FILE adds the reference code's layer: FILE is transformers/src/transformers/models/llama/modeling_llama.py
of github.com/Ming-K9/MFT. --out FILE writes JSON beside the table.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from mft_ray.config import TrainConfig
from mft_ray.masking import Masks, MaskSettings, select
from mft_ray.training.step.flops import Flops
from mft_ray.training.step.optimizers import build_optimizer

SHAPES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 30, "num_attention_heads": 4},
    "smollm2-135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "llama2-7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 32000,
    },
    "llama3.1-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
}
Step = Callable[[], None]


@dataclass(frozen=True)
class Setting:
    """Where and how a step is taken."""

    layers: str
    tokens: int
    length: int
    accumulation: int
    compute: str
    device: str


@contextmanager
def floor(model: nn.Module, setting: Setting) -> Iterator[tuple[list[nn.Parameter], Step]]:
    """The selected weights trainable, no mask: what any method that trains as much must pay."""
    weights = [model.get_parameter(weight.name) for weight in select(model, setting.layers)]
    kept = [weight.detach().clone() for weight in weights]
    for weight in weights:
        weight.requires_grad_(True)
    try:
        yield weights, lambda: None
    finally:
        for weight, before in zip(weights, kept, strict=True):
            weight.grad = None
            weight.requires_grad_(False)
            weight.data.copy_(before)


@contextmanager
def full(model: nn.Module, setting: Setting) -> Iterator[tuple[list[nn.Parameter], Step]]:
    """Full fine-tuning: every weight trainable."""
    parameters = list(model.parameters())
    # Only the time counts: the weights are not put back, and a learning rate this low hardly moves them.
    model.requires_grad_(True)
    try:
        yield parameters, lambda: None
    finally:
        model.requires_grad_(False)
        for parameter in parameters:
            parameter.grad = None


@contextmanager
def lora(model: nn.Module, setting: Setting) -> Iterator[tuple[list[nn.Parameter], Step]]:
    """LoRA as the paper has it: rank 64 on all seven projections of every layer."""
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(model, LoraConfig(r=64, lora_alpha=16, target_modules="all-linear"))
    try:
        yield [parameter for parameter in wrapped.parameters() if parameter.requires_grad], lambda: None
    finally:
        wrapped.unload()
        model.requires_grad_(False)


def ours(cache: bool) -> Callable[[nn.Module, Setting], Any]:
    """Our masks, with W * M kept between updates or not."""

    @contextmanager
    def masked(model: nn.Module, setting: Setting) -> Iterator[tuple[list[nn.Parameter], Step]]:
        dtype = torch.bfloat16 if setting.compute == "bfloat16" else True
        # The ratio of a mask that has been learned for a while, not the constant start's first threshold.
        settings = MaskSettings(ratio=0.1, layers=setting.layers, init="magnitude")
        masks = Masks(model, settings, cache=dtype if cache else False)
        try:
            yield masks.scores(), masks.update
        finally:
            masks.unload()

    return masked


def reference_layer(source: Path) -> Any:
    """Return the reference code's class SupermaskLinearSparsity, cut out of its modeling file."""
    tree = ast.parse(source.read_text())
    wanted = ("GetSubnetSparsity", "SupermaskLinearSparsity")
    body = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name in wanted]
    space: dict[str, Any] = {"torch": torch, "nn": nn, "F": nn.functional, "autograd": torch.autograd, "math": math}
    exec(compile(ast.Module(body=body, type_ignores=[]), str(source), "exec"), space)
    return space["SupermaskLinearSparsity"]


def reference(source: Path) -> Callable[[nn.Module, Setting], Any]:
    """The reference code's linear layer."""
    layer = reference_layer(source)

    @contextmanager
    def replaced(model: nn.Module, setting: Setting) -> Iterator[tuple[list[nn.Parameter], Step]]:
        before = {weight.module: model.get_submodule(weight.module) for weight in select(model, setting.layers)}
        scores = []
        for name, linear in before.items():
            with torch.device("meta"):
                new = layer(linear.in_features, linear.out_features, bias=linear.bias is not None, sparsity=0.9)
            new.weight, new.bias = linear.weight, linear.bias
            # As there, of the weights' dtype: its product of the two has no cast.
            new.scores = nn.Parameter(linear.weight.detach().abs())
            scores.append(new.scores)
            model.set_submodule(name, new)
        try:
            yield scores, lambda: None
        finally:
            for name, linear in before.items():
                model.set_submodule(name, linear)

    return replaced


CUDA = torch.cuda.is_available()


def eight_bits(parameters: Iterable[nn.Parameter], dtype: str = "float32", **settings: float) -> torch.optim.Optimizer:
    """Return an optimizer of 8-bit states, and leave what it trains in a dtype."""
    trained = list(parameters)
    for parameter in trained:
        parameter.data = parameter.data.to(getattr(torch, dtype))
    return build_optimizer(trained, TrainConfig(optimizer="adamw_8bit", dtype=dtype, **settings))


# As in training: on a GPU those that make no temporary copies of all parameters.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": partial(torch.optim.AdamW, fused=CUDA),
    "rmsprop": partial(torch.optim.RMSprop, foreach=False),
    "adamw_8bit": eight_bits,
    "adamw_8bit, bfloat16": partial(eight_bits, dtype="bfloat16"),
}


def seconds_per_step(
    model: nn.Module, variant: Any, setting: Setting, steps: int, optimizer: str = "adamw"
) -> tuple[list[float], int, int]:
    """Return the time of each step, the peak of GPU memory in bytes (0 on a CPU), and a step's operations."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.vocab_size
    shape = (max(1, setting.tokens // setting.accumulation // setting.length), setting.length)
    batches = [
        torch.randint(vocabulary, shape, generator=generator).to(setting.device) for _ in range(setting.accumulation)
    ]
    autocast = torch.autocast(setting.device, torch.bfloat16, enabled=setting.compute == "bfloat16")
    times = []
    cuda = setting.device == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with variant(model, setting) as (parameters, update):
        stepper = OPTIMIZERS[optimizer](parameters, lr=1e-5, weight_decay=0.0)

        def accumulate(batch: torch.Tensor) -> None:
            with autocast:
                loss = model(input_ids=batch, labels=batch, use_cache=False).loss
            (loss / setting.accumulation).backward()

        counter = Flops()
        with counter.counted("a micro-batch", *shape):
            accumulate(batches[0])
        for _ in range(steps + 1):
            _wait(cuda)
            start = time.perf_counter()
            for batch in batches:
                accumulate(batch)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            stepper.step()
            stepper.zero_grad()
            update()
            _wait(cuda)
            times.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if cuda else 0
    return times[1:], peak, int(counter.total) * len(batches)  # the first step makes the optimizer's state


def ratio(times: list[float], floor: list[float], steps: int) -> float:
    """Return the median over rounds of fastest step over fastest step."""
    rounds = range(0, len(times), steps)
    return statistics.median(min(times[at : at + steps]) / min(floor[at : at + steps]) for at in rounds)


def _wait(cuda: bool) -> None:
    if cuda:
        torch.cuda.synchronize()


def load(options: argparse.Namespace) -> nn.Module:
    dtype = getattr(torch, options.dtype)
    if options.model:
        model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype)
    else:
        with torch.device(options.device):
            before = torch.get_default_dtype()
            torch.set_default_dtype(dtype)
            try:
                model = LlamaForCausalLM(LlamaConfig(**SHAPES[options.shape]))
            finally:
                torch.set_default_dtype(before)
    if options.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.to(options.device).requires_grad_(False).train()


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| layers | variant | s/step | over the floor | tokens/s | TFLOP/s | peak GiB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        if math.isnan(row["seconds"]):
            lines.append(f"| {row['layers']} | {row['variant']} | does not fit | | | | |")
            continue
        memory = f"{row['peak_bytes'] / 2**30:.1f}" if row["peak_bytes"] else ""
        lines.append(
            f"| {row['layers']} | {row['variant']} | {row['seconds']:.3f} | {row['ratio']:.3f} | "
            f"{row['tokens_per_second']:,.0f} | {row['flops'] / row['seconds'] / 1e12:,.1f} | {memory} |"
        )
    return "\n".join(lines)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", help="folder or hub id; without it, random weights of --shape")
    arguments.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    arguments.add_argument("--layers", nargs="+", default=["4-7"])
    arguments.add_argument("--tokens", type=int, default=1024, help="per optimizer step")
    arguments.add_argument("--length", type=int, default=256, help="tokens of a sequence")
    arguments.add_argument("--accumulation", type=int, default=1, help="micro-batches per optimizer step")
    arguments.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights")
    arguments.add_argument("--compute", choices=("float32", "bfloat16"), default="float32", help="bfloat16: autocast")
    arguments.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    arguments.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--steps", type=int, default=3, help="per variant and round")
    arguments.add_argument("--reference", type=Path)
    arguments.add_argument("--lora", action="store_true", help="LoRA too; needs peft")
    arguments.add_argument("--full", action="store_true", help="full fine-tuning too")
    arguments.add_argument("--out", type=Path)
    options = arguments.parse_args()
    model = load(options)
    variants = {"floor": floor, "mft_ray": ours(True), "mft_ray, W * M not kept": ours(False)}
    if options.reference:
        variants["reference code"] = reference(options.reference)
    if options.lora:
        variants["LoRA r 64, all layers"] = lora
    if options.full:
        variants["full fine-tuning"] = full
    rows = []
    for layers in options.layers:
        setting = Setting(layers, options.tokens, options.length, options.accumulation, options.compute, options.device)
        times: dict[str, list[float]] = {name: [] for name in variants}
        peaks, flops = dict.fromkeys(variants, 0), dict.fromkeys(variants, 0)
        for turn in range(options.rounds):
            order = list(variants.items())
            for name, variant in order if turn % 2 == 0 else reversed(order):
                try:
                    measured, peak, flops[name] = seconds_per_step(model, variant, setting, options.steps)
                except torch.OutOfMemoryError:
                    measured, peak = [math.nan] * options.steps, 0
                times[name] += measured
                peaks[name] = max(peaks[name], peak)
        medians = {name: statistics.median(values) for name, values in times.items()}
        ratios = {name: ratio(values, times["floor"], options.steps) for name, values in times.items()}
        rows += [
            {
                "layers": layers,
                "variant": name,
                "seconds": medians[name],
                "ratio": ratios[name],
                "tokens_per_second": setting.tokens / medians[name],
                "peak_bytes": peaks[name],
                "flops": flops[name],
                "all_seconds": times[name],
            }
            for name in variants
        ]
    print(table(rows))
    if options.out:
        machine = (
            torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
        )
        about = {"device": machine, "threads": torch.get_num_threads(), "python": platform.python_version()}
        versions = {name: version(name) for name in ("torch", "transformers")}
        given = {name: str(value) for name, value in vars(options).items() if name not in ("out", "model", "reference")}
        content = {**about, **versions, "options": given, "rows": rows}
        options.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
