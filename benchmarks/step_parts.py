"""What the parts of a masked step cost on their own, and what fused kernels in their place would cost.

    .venv/bin/python benchmarks/step_parts.py --shape llama2-7b --device cuda

Milliseconds over all masked weights together: the best of eight calls, each waited for.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from step import SHAPES, load

from mft_ray.masking import Masks, MaskSettings
from mft_ray.masking.straight_through import StraightThrough, masked
from mft_ray.masking.topk import keep_mask


def best_of(call: Callable[[], object], device: str, times: int = 8) -> float:
    """Return the milliseconds of the fastest call."""
    best = float("inf")
    for _ in range(times + 2):  # the first two compile, and fill what is kept
        began = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 1e3 * best


@torch.compile(dynamic=True)
def fused_gradient(gradient: torch.Tensor, scores: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return what StraightThrough.backward returns, in one kernel."""
    product = gradient.to(scores.dtype) * weight
    return torch.where(scores < 0, -product, product)


@torch.compile(dynamic=True)
def fused_set(scores: torch.Tensor, threshold: float, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mask and W * M from a threshold, in one kernel."""
    keep = scores.abs() > threshold
    return keep, torch.where(keep, weight, torch.zeros_like(weight))


class Saved:
    """Context of an autograd function, with what its forward saved."""

    signed = False

    def __init__(self, *saved: torch.Tensor | None) -> None:
        self.saved_tensors = saved


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    arguments.add_argument("--layers", default="4-7")
    arguments.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    arguments.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    options = arguments.parse_args()
    options.model, options.checkpointing = None, False
    model = load(options)
    masks = Masks(model, MaskSettings(ratio=0.1, layers=options.layers, init="magnitude"), cache=True)
    scores, kept = masks.scores(), masks.masks()
    weights = [model.get_parameter(f"{w.module}.parametrizations.{w.parameter}.original") for w in masks.weights]
    gradients = [torch.randn_like(weight) for weight in weights]
    for score in scores:
        score.grad = torch.randn_like(score) * 1e-3
    optimizer = torch.optim.AdamW(scores, lr=1e-5, weight_decay=0.0, fused=options.device == "cuda")
    together = list(zip(gradients, [score.detach() for score in scores], weights, strict=True))
    parts: dict[str, Callable[[], object]] = {
        "masks from scores and W * M (Masks.update)": masks.update,
        "  of it: masks from scores": lambda: [keep_mask(score, 0.1) for score in scores],
        "  of it: W * M": lambda: [masked(w, m) for w, m in zip(weights, kept.values(), strict=True)],
        "  mask and W * M from a known threshold, fused": lambda: [fused_set(s, 0.1, w) for _, s, w in together],
        "gradient of the scores": lambda: [StraightThrough.backward(Saved(s, w, None), g) for g, s, w in together],
        "  fused": lambda: [fused_gradient(g, s, w) for g, s, w in together],
        "norm and clipping": lambda: torch.nn.utils.clip_grad_norm_(scores, 1e9),
        "AdamW": optimizer.step,
    }
    print(
        f"{sum(score.numel() for score in scores):,} weights in {len(scores)} matrices", "", "| part | ms |", sep="\n"
    )
    print("| --- | --- |")
    for name, part in parts.items():
        if name.endswith("fused") and options.device == "cpu":
            continue  # what compiles for a CPU is a compiler that may not be there
        print(f"| {name} | {best_of(part, options.device):.2f} |", flush=True)


if __name__ == "__main__":
    main()
