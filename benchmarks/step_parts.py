"""What the parts of a masked step cost on their own.

    .venv/bin/python benchmarks/step_parts.py --shape llama2-7b --device cuda
    TORCH_COMPILE_DISABLE=1 .venv/bin/python benchmarks/step_parts.py --shape llama2-7b --device cuda

The loss is that of answers after the decoder, forward and backward, beside liger-kernel's where that is
installed, and torch's own, which makes all logits at once. Milliseconds over all masked weights together: the best of
eight calls, each waited for.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from step import SHAPES, load
from torch.nn.functional import cross_entropy

from mft_ray.masking import Masks, MaskSettings
from mft_ray.masking.batched_topk import keep_each
from mft_ray.masking.straight_through import StraightThrough, masked
from mft_ray.masking.topk import keep_mask, removed_count
from mft_ray.training.step.answer_loss import AnswerLoss, _nll, _rows_at_once


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


class Saved:
    """Context of an autograd function, with what its forward saved."""

    signed = False

    def __init__(self, *saved: torch.Tensor | None) -> None:
        self.saved_tensors = saved


def losses(model: Any, answers: int) -> dict[str, Callable[[], object]]:
    """Return ways to a loss and the gradient of the last hidden states."""
    weight = model.get_output_embeddings().weight
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(answers, weight.shape[1], generator=generator).to(weight.device, weight.dtype).requires_grad_()
    targets = torch.randint(weight.shape[0], (answers,), generator=generator).to(weight.device)
    own = AnswerLoss(model)
    head = own._head
    assert head is not None
    rows = _rows_at_once(weight.shape[0], weight.device)
    head.hidden_states(
        model, {"input_ids": targets[None, :8]}, (torch.zeros(1, dtype=torch.long),) * 2
    )  # how it is called
    ways: dict[str, Callable[[], object]] = {
        f"loss of {answers:,} answers": lambda: head.summed(_nll, hidden, targets, rows).backward(),
        "  torch": lambda: cross_entropy((hidden @ weight.T).float(), targets, reduction="sum").backward(),
    }
    if find_spec("liger_kernel"):
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction as Liger

        ways["  liger-kernel"] = lambda: Liger.apply(hidden, weight, targets, None, None, -100, 0.0, 0.0, "sum")[
            0
        ].backward()
    return ways


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
    removed = [removed_count(score.numel(), 0.1) for score in scores]
    together = list(zip(gradients, [score.detach() for score in scores], weights, strict=True))
    parts: dict[str, Callable[[], object]] = {
        "masks from scores and W * M (Masks.update)": masks.update,
        "  of it: masks from scores": lambda: keep_each(scores, removed),
        "  matrix by matrix": lambda: [keep_mask(score, 0.1) for score in scores],
        "  of it: W * M": lambda: [masked(w, m) for w, m in zip(weights, kept.values(), strict=True)],
        "gradient of the scores": lambda: [StraightThrough.backward(Saved(s, w, None), g) for g, s, w in together],
        "norm and clipping": lambda: torch.nn.utils.clip_grad_norm_(scores, 1e9),
        "AdamW": optimizer.step,
        **losses(model, 4096 if options.device == "cuda" else 64),
    }
    print(
        f"{sum(score.numel() for score in scores):,} weights in {len(scores)} matrices", "", "| part | ms |", sep="\n"
    )
    print("| --- | --- |")
    for name, part in parts.items():
        print(f"| {name} | {best_of(part, options.device):.2f} |", flush=True)


if __name__ == "__main__":
    main()
