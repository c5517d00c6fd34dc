"""Memory that `mft-ray plan` predicts of a training job's workers, against what they are measured to hold at the peak.

    .venv/bin/python benchmarks/plan_accuracy.py [--only gpt2-40m] [--out FILE.json]
    .venv/bin/python benchmarks/plan_accuracy.py --measured FILE.json [FILE.json]

Small models with random weights, two workers on this machine's processors, over gloo. Each job runs in processes of its
own that have trained a tiny model before, so that what libraries load once is nobody's doing: measured is the resident
memory beyond that. glibc is told to give freed blocks back. Each phase of a job has its own peak; the highest counts.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import json
import multiprocessing
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
import torch.distributed as dist

from mft_ray.config import EvaluationConfig, LoraConfig, ScalingConfig, TrainConfig
from mft_ray.data import arithmetic
from mft_ray.data.encoding import IGNORED
from mft_ray.data.pieces import FEATURES
from mft_ray.data.store import TOKENIZER
from mft_ray.masking import MaskSettings
from mft_ray.models.export import save_model
from mft_ray.models.loading import new_model
from mft_ray.preflight.needs import Lengths, Needs, needs_of
from mft_ray.training import memory
from mft_ray.training.cache import WorkerCache
from mft_ray.training.job import TrainJob
from mft_ray.training.loop import Trainer
from mft_ray.utils.files import write_json

LLAMA = {"model_type": "llama", "max_position_embeddings": 512}
# Of 20 to 100 million weights: heads of their own and grouped, embeddings tied and not, small and large vocabularies.
SHAPES: dict[str, tuple[dict[str, Any], int]] = {
    "llama-20m": (
        {**LLAMA, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6},
        8192,
    ),
    "gpt2-40m": ({"model_type": "gpt2", "n_embd": 512, "n_head": 8, "n_layer": 10, "n_positions": 512}, 16384),
    "smollm2-70m": (
        {
            **LLAMA,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 12,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
        },
        49152,
    ),
    "qwen3-95m": (
        {
            "model_type": "qwen3",
            "max_position_embeddings": 512,
            "hidden_size": 768,
            "intermediate_size": 2048,
            "num_hidden_layers": 8,
            "num_attention_heads": 12,
            "num_key_value_heads": 4,
            "head_dim": 64,
        },
        24576,
    ),
}
TINY_LAYERS = 4
TINY_SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
TINY = {**LLAMA, **TINY_SIZES, "num_hidden_layers": TINY_LAYERS}
STAGES = (0, 1, 2, 3)
METHODS = ("mft", "lora", "fft")
WORKERS, LENGTH, ROWS = 2, 128, 8
TRAIN = TrainConfig(steps=2, eval_every=2, batch_size=16, micro_batch_tokens=512, eval_batch_size=4, lr=1e-5)
GOAL = 0.1
# Every block of 64 kB goes back to the system when it is freed.
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "10000000"}


def prepare(folder: Path, architecture: dict[str, Any], vocabulary: int) -> None:
    """Write a model, and data of one length."""
    tokenizer = arithmetic.tokenizer()
    model = new_model(architecture, vocabulary, 0)
    save_model(model, {name: weight.detach() for name, weight in model.named_parameters()}, tokenizer, folder / "model")
    ids = [number % len(tokenizer) for number in range(LENGTH)]
    labels = [IGNORED if place < LENGTH // 2 else token for place, token in enumerate(ids)]
    row = {"input_ids": ids, "labels": labels, "prompt_ids": ids[:8], "answer_tokens": LENGTH // 2}
    for split, rows in (("train", 2 * TRAIN.batch_size), ("validation", ROWS), ("test", ROWS)):
        made = [{**row, "id": str(n), "answer": "", "source": None} for n in range(rows)]
        made_of = {name: [each[name] for each in made] for name in FEATURES}
        datasets.Dataset.from_dict(made_of, features=FEATURES).save_to_disk(str(folder / "data" / split))
    tokenizer.save_pretrained(str(folder / "data" / TOKENIZER))


def job(folder: Path, out: Path, method: str, stage: int, layers: int) -> TrainJob:
    """Return what is measured: FFT, or what is trained in the upper half of the layers."""
    group = f"{layers // 2}-{layers - 1}"
    return TrainJob(
        method=method,
        model=str(folder / "model"),
        data=str(folder / "data"),
        out=str(out),
        train=TRAIN,
        evaluation=EvaluationConfig(),
        scaling=ScalingConfig(workers=WORKERS, zero_stage=stage, prefix_cache_gb=0),  # type: ignore[arg-type]
        mask=MaskSettings(layers=group) if method == "mft" else None,
        lora=LoraConfig(rank=16, layers=group) if method == "lora" else None,
    )


def phases(it: TrainJob) -> Iterator[tuple[str, float]]:
    """Run a job and yield the peak of each of its phases, in bytes."""
    cpu = torch.device("cpu")
    memory.begin(cpu)
    trainer = Trainer(it, WorkerCache(cpu))
    yield "load", memory.peak(cpu)
    work: dict[str, Callable[[], object]] = {
        "first evaluation": trainer.evaluate,
        "steps": trainer.train_until_evaluation,
        "second evaluation": trainer.evaluate,
        "checkpoint": trainer.checkpoint,
    }
    for name, do in work.items():
        memory.begin(cpu)
        do()
        yield name, memory.peak(cpu)
    trainer.free()


def work(rank: int, port: int, warm: TrainJob, measured: TrainJob, tell: Any) -> None:
    """Be one of the workers of a job."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE=str(WORKERS), DS_ACCELERATOR="cpu")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORKERS)
    memory.neighbours = lambda scaling: (WORKERS, WORKERS)  # there is no Ray here
    try:
        list(phases(warm))
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        memory.begin(torch.device("cpu"))
        before = memory.peak(torch.device("cpu"))
        tell.put((rank, {name: peak - before for name, peak in phases(measured)}))
    except BaseException as error:
        tell.put((rank, repr(error)))
        raise


def measure(context: Any, warm: TrainJob, measured: TrainJob) -> dict[str, float]:
    """Return the peak of each phase, of the worker that has the most."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tell = context.Queue()
    workers = [
        context.Process(target=work, args=(rank, port, warm, measured, tell), daemon=True) for rank in range(WORKERS)
    ]
    for worker in workers:
        worker.start()
    told = dict(tell.get(timeout=300) for _ in workers)
    for worker in workers:
        worker.join()
    if wrong := [said for said in told.values() if isinstance(said, str)]:
        raise RuntimeError(wrong[0])
    return {name: max(each[name] for each in told.values()) for name in told[0]}


def predicted(shape: str, method: str, stage: int, layers: int) -> Needs:
    """Return what the plan says of a job, from shapes."""
    architecture, vocabulary = SHAPES[shape]
    with torch.device("meta"):
        model = new_model(architecture, vocabulary, 0)
    nowhere = Path("nowhere")
    it = job(nowhere, nowhere, method, stage, layers)
    return needs_of(it, model, Lengths(LENGTH, LENGTH, LENGTH // 2), "cpu", 1e12)


def compared(row: dict[str, Any]) -> dict[str, Any]:
    """Return a measured row with what is predicted."""
    needs = predicted(row["shape"], row["method"], row["zero_stage"], depth_of(row["shape"]))
    peak = max(row["measured"].values())
    phase = max(row["measured"], key=row["measured"].get)
    parts = {name: round(size) for name, size in vars(needs.training).items() if size}
    return {
        **row,
        "peak": peak,
        "phase": phase,
        "predicted": needs.peak,
        "off": needs.peak / peak - 1,
        "parts": parts,
        "evaluation": needs.evaluation,
    }


def depth_of(shape: str) -> int:
    """Return the decoder layers of a shape."""
    architecture = SHAPES[shape][0]
    return int(architecture.get("num_hidden_layers") or architecture["n_layer"])


def tell(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    print("| shape | method | ZeRO | measured, MB | predicted, MB | off |\n| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        named = f"| {row['shape']} | {row['method']} | {row['zero_stage']}"
        print(f"{named} | {row['peak'] / 1e6:,.0f} | {row['predicted'] / 1e6:,.0f} | {100 * row['off']:+.1f} % |")
    within = sum(abs(row["off"]) <= GOAL for row in rows)
    worst = max(rows, key=lambda row: abs(row["off"]))
    print(f"\n{within} of {len(rows)} within {GOAL:.0%}; the worst {100 * worst['off']:+.1f} %")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--only", choices=SHAPES, action="append")
    arguments.add_argument("--methods", choices=METHODS, nargs="+", default=METHODS)
    arguments.add_argument("--stages", type=int, nargs="+", default=STAGES)
    arguments.add_argument("--plain", action="store_true", help="leave glibc's allocator as it is")
    arguments.add_argument("--measured", type=Path, nargs="+", help="results of earlier calls")
    arguments.add_argument("--out", type=Path)
    options = arguments.parse_args()
    if options.measured:
        rows = [compared(row) for file in options.measured for row in json.loads(file.read_text())["rows"]]
    else:
        rows = measured_rows(options)
    tell(rows)
    if options.out:
        write_json(options.out, {"torch": torch.__version__, "rows": rows})


def measured_rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure, and predict, what the options ask for."""
    if not options.plain:
        os.environ.update(GIVEN_BACK)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["plan_accuracy", "mft_ray.training.loop", "peft", "deepspeed"])
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="plan-accuracy-") as scratch:
        root = Path(scratch)
        prepare(root / "tiny", TINY, 64)
        for shape in options.only or SHAPES:
            architecture, vocabulary = SHAPES[shape]
            prepare(root / shape, architecture, vocabulary)
            for method, stage in itertools.product(options.methods, options.stages):
                out = root / f"out-{shape}-{method}-{stage}"
                it = job(root / shape, out, method, stage, depth_of(shape))
                warm = job(root / "tiny", root / f"{out.name}-warm", method, stage, TINY_LAYERS)
                out.mkdir()
                Path(warm.out).mkdir()
                measured = measure(context, warm, it)
                rows.append(compared({"shape": shape, "method": method, "zero_stage": stage, "measured": measured}))
                shown = ", ".join(f"{name} {peak / 1e6:,.0f}" for name, peak in measured.items())
                print(f"{shape} {method} {stage}: {shown}", flush=True)
    return rows


if __name__ == "__main__":
    main()
