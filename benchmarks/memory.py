"""What training a mask needs beyond the frozen model's forward, in bytes per selected weight.

    .venv/bin/python benchmarks/memory.py --model FOLDER
    .venv/bin/python benchmarks/memory.py --shape llama2-7b --dtype bfloat16 --device cuda

Each variant runs in a process of its own: one forward of the frozen model, then three training steps on few
tokens with gradient checkpointing, so that activations weigh nothing. What is counted is how far the peak of
the second exceeds that of the first: resident memory on a CPU (glibc is told to give freed blocks back), allocated
memory on a GPU. The fewest bytes that can do are listed beside it. --out FILE writes JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from step import OPTIMIZERS, SHAPES, Setting, load, ours, seconds_per_step

from mft_ray.training import memory

# Scores and gradient, what the optimizer keeps, and one bit that says whether a weight is there.
FEWEST = {
    "adamw": 4 + 4 + 8 + 1 / 8,
    "rmsprop": 4 + 4 + 4 + 1 / 8,
    "adamw_8bit": 4 + 4 + 2 * (1 + 4 / 256) + 1 / 8,
    "adamw_8bit, bfloat16": 2 + 2 + 2 * (1 + 4 / 256) + 1 / 8,
}
# Large blocks go back to the system when they are freed: what is held is counted, not the allocator's gaps.
ENVIRONMENT = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
VARIANTS = {"W * M kept": True, "W * M not kept": False}


def _warm_up(device: str, optimizer: str) -> None:
    """Let torch load what it loads at the first training step of any model: that is no weight's doing."""
    small = torch.nn.Linear(8, 8, device=device)
    small(torch.ones(1, 8, device=device)).sum().backward()
    torch.nn.utils.clip_grad_norm_(small.parameters(), 1.0)
    OPTIMIZERS[optimizer](small.parameters()).step()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    model = load(options)
    setting = Setting(options.layers, options.tokens, options.tokens, 1, "float32", options.device)
    tokens = torch.zeros((1, options.tokens), dtype=torch.long, device=options.device)
    _warm_up(options.device, options.optimizer)
    memory.begin(torch.device(options.device))
    with torch.no_grad():
        model(tokens, use_cache=False)
    forward = memory.peak(torch.device(options.device))
    memory.begin(torch.device(options.device))
    seconds_per_step(model, ours(VARIANTS[options.variant]), setting, steps=2, optimizer=options.optimizer)
    with ours(False)(model, setting) as (scores, _):
        count = sum(score.numel() for score in scores)
    return {
        "variant": options.variant,
        "optimizer": options.optimizer,
        "bytes": memory.peak(torch.device(options.device)) - forward,
        "weights": count,
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", help="folder or hub id; without it, random weights of --shape")
    arguments.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    arguments.add_argument("--layers", default="all")
    arguments.add_argument("--tokens", type=int, default=16)
    arguments.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights")
    arguments.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--out", type=Path)
    arguments.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments.add_argument("--optimizer", choices=FEWEST, default="adamw", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    options.checkpointing = True
    if options.variant:
        print(json.dumps(measure(options)))
        return
    rows = []
    print("| W * M | optimizer | bytes per weight | fewest | ratio |\n| --- | --- | --- | --- | --- |")
    if importlib.util.find_spec("bitsandbytes") is None:
        print("bitsandbytes is not installed: without adamw_8bit")
        for optimizer in [name for name in FEWEST if name.startswith("adamw_8bit")]:
            del FEWEST[optimizer]
    for optimizer, fewest in FEWEST.items():
        for variant in VARIANTS:
            command = [sys.executable, __file__, *sys.argv[1:], "--variant", variant, "--optimizer", optimizer]
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRONMENT)
            row = json.loads(done.stdout.splitlines()[-1])
            each = row["bytes"] / row["weights"]
            rows.append({**row, "bytes_per_weight": each, "fewest": fewest, "ratio": each / fewest})
            print(f"| {variant} | {optimizer} | {each:.2f} | {fewest:.3f} | {each / fewest:.3f} |", flush=True)
    if options.out:
        given = {name: str(value) for name, value in vars(options).items() if name not in ("out", "model", "variant")}
        options.out.write_text(
            json.dumps({"torch": torch.__version__, "options": given, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
