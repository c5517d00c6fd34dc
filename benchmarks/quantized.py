"""Weights outside the selection in 8 or 4 bits: memory of the frozen model, a step's time, and what rounding costs.

    .venv/bin/python benchmarks/quantized.py MODEL [--layers 4-7] [--compute float32] [--out FILE]

Memory is of processes of their own, beyond what each held before it loaded the model: its own pages, and pages of the
mapped checkpoint, which the kernel may take back, after one forward pass. Steps (forward and backward pass of a mask's
scores, AdamW) are taken in one process, in turn, round after round; the ratio is the median over rounds. The loss is
that of the model without a mask, of each token of this project's documentation.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from mft_ray.config import TrainConfig
from mft_ray.masking import Masks, MaskSettings, select
from mft_ray.models.loading import load_model, load_tokenizer
from mft_ray.models.quantized import QuantizedModel, bytes_of
from mft_ray.training import memory
from mft_ray.training.step.optimizers import build_optimizer

CPU = torch.device("cpu")
WAYS = ("as it is", "int8", "nf4")
TEXTS = sorted((Path(__file__).parent.parent / "docs").glob("*.md"))
LENGTH = 256


def load(way: str, options: argparse.Namespace) -> PreTrainedModel:
    """Load a model with what lies outside the selection held in one of the ways."""
    if way == "as it is":
        return load_model(options.model, options.dtype)
    quantized = QuantizedModel(options.model, options.dtype, None, way, CPU)  # type: ignore[arg-type]
    return quantized.on(lambda model: {weight.name for weight in select(model, options.layers)})


def windows(options: argparse.Namespace, count: int) -> torch.Tensor:
    """Return texts as tokens, shape (count, LENGTH)."""
    tokenizer = load_tokenizer(options.model)
    ids: list[int] = tokenizer("\n".join(path.read_text() for path in TEXTS), verbose=False)["input_ids"]
    return torch.tensor(ids[: count * LENGTH]).view(count, LENGTH)


def loss_of(model: PreTrainedModel, batch: torch.Tensor, options: argparse.Namespace) -> torch.Tensor:
    """Return the mean loss of a batch's tokens."""
    with torch.autocast("cpu", torch.bfloat16, enabled=options.compute == "bfloat16"):
        loss: torch.Tensor = model(input_ids=batch, labels=batch, use_cache=False).loss
    return loss


def pages() -> dict[str, float]:
    """Return the bytes of this process's own pages, and of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    named = {"RssAnon:": "own", "RssFile:": "files"}
    return {named[line.split()[0]]: 1024.0 * int(line.split()[1]) for line in lines if line.split()[0] in named}


def give_back() -> None:
    """Return what is free to the system, as workers do."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def held(way: str, options: argparse.Namespace, tell: Any) -> None:
    """Tell what loading a model, and one forward pass, leave in memory."""
    torch.set_num_threads(options.threads)
    batch = windows(options, 1)[:, :16]
    if way != "as it is":  # imports are nobody's weights
        import bitsandbytes  # noqa: F401
    give_back()
    before = pages()
    memory.begin(CPU)
    base = memory.peak(CPU)
    began = time.perf_counter()
    model = load(way, options)
    seconds = time.perf_counter() - began
    peak = memory.peak(CPU) - base
    with torch.no_grad():
        loss_of(model, batch, options)
    give_back()
    after = pages()
    tell.put(
        {
            "weights": bytes_of(model),
            "load_s": seconds,
            "load_peak": peak,
            **{name: after[name] - before[name] for name in before},
        }
    )


def steps(options: argparse.Namespace) -> Iterator[tuple[str, float, float]]:
    """Yield for each way the loss without a mask, and seconds of a step, round after round."""
    models = {way: load(way, options) for way in WAYS}
    text = windows(options, options.texts)
    with torch.no_grad():
        losses = {
            way: statistics.mean(float(loss_of(model.eval(), batch, options)) for batch in text.split(options.rows))
            for way, model in models.items()
        }
    optimizers = {}
    masks = {}
    for way, model in models.items():
        masks[way] = Masks(model.train(), MaskSettings(ratio=0.1, layers=options.layers))
        optimizers[way] = build_optimizer(masks[way].scores(), TrainConfig(lr=1e-3))
    batch = text[: options.rows]
    for _ in range(options.rounds + 1):  # the first warms up
        for way, model in models.items():
            began = time.perf_counter()
            loss_of(model, batch, options).backward()  # type: ignore[no-untyped-call]
            optimizers[way].step()
            optimizers[way].zero_grad()
            masks[way].update()
            yield way, losses[way], time.perf_counter() - began


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model", help="folder or hub id")
    arguments.add_argument("--layers", default="4-7")
    arguments.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of frozen weights")
    arguments.add_argument("--compute", choices=("float32", "bfloat16"), default="bfloat16")
    arguments.add_argument("--rows", type=int, default=4, help=f"texts of {LENGTH} tokens in a step")
    arguments.add_argument("--texts", type=int, default=64, help="that the loss is of")
    arguments.add_argument("--rounds", type=int, default=7, help="of steps; 0: memory alone")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--out", type=Path)
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    context = multiprocessing.get_context("spawn")
    rows: dict[str, dict[str, Any]] = {}
    for way in WAYS:
        tell = context.Queue()
        process = context.Process(target=held, args=(way, options, tell))
        process.start()
        rows[way] = tell.get(timeout=1800)
        process.join()
        print(way, {name: round(value, 3) for name, value in rows[way].items()}, flush=True)
    if not options.rounds:
        return
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    for way, loss, seconds in steps(options):
        rows[way]["loss"] = loss
        taken[way].append(seconds)
        print(f"{way}: a step in {seconds:.2f} s, loss {loss:.4f}", flush=True)
    plain = taken["as it is"][1:]
    for way, row in rows.items():
        row["seconds"] = statistics.median(taken[way][1:])
        row["ratio"] = statistics.median(one / other for one, other in zip(taken[way][1:], plain, strict=True))
    tell_all(rows)
    if options.out:
        given = {name: str(value) for name, value in vars(options).items() if name not in ("out", "model")}
        options.out.write_text(
            json.dumps({"torch": torch.__version__, "options": given, "rows": rows}, indent=1) + "\n"
        )


def tell_all(rows: dict[str, dict[str, Any]]) -> None:
    """Print the table."""
    print(
        "| outside the selection | weights, MB | own pages, MB | pages of the file, MB | loaded in, s | a step, s "
        "| ratio | loss |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    for way, row in rows.items():
        sizes = " | ".join(f"{row[name] / 1e6:,.0f}" for name in ("weights", "own", "files"))
        print(
            f"| {way} | {sizes} | {row['load_s']:.1f} | {row['seconds']:.2f} | {row['ratio']:.2f} | {row['loss']:.4f} |"
        )


if __name__ == "__main__":
    main()
