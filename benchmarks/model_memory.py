"""Host memory that workers of a node hold of a model, in models: what they share with each other, and what not.

    .venv/bin/python benchmarks/model_memory.py MODEL [--workers 2] [--out FILE]

Each worker is a process that loads the model, as a training job does, and reads all of it. Pages of files are one copy
for all of them, which the kernel takes back when it needs the memory.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from pathlib import Path
from typing import Any

import psutil

from mft_ray.models.loading import load_model


def load(path: str, dtype: str | None, tell: Any, done: Any) -> None:
    """Load a model, and tell what that takes: memory of its own, pages of files, and the size of the weights."""
    before = psutil.Process().memory_info()
    model = load_model(path, dtype)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    after = psutil.Process().memory_info()
    own = (after.rss - after.shared) - (before.rss - before.shared)
    tell.put({"own": own / weights, "files": (after.shared - before.shared) / weights, "bytes": weights})
    done.wait()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model")
    arguments.add_argument("--workers", type=int, default=2)
    arguments.add_argument("--out", type=Path)
    options = arguments.parse_args()
    context = multiprocessing.get_context("spawn")
    found: dict[str, list[dict[str, float]]] = {}
    for dtype in (None, "float32", "bfloat16"):
        told, done = context.Queue(), context.Event()
        workers = [
            context.Process(target=load, args=(options.model, dtype, told, done)) for _ in range(options.workers)
        ]
        for worker in workers:
            worker.start()
        found[dtype or "the checkpoint's"] = [told.get(timeout=600) for _ in workers]
        done.set()
        for worker in workers:
            worker.join()
    print("| dtype | weights, MB | memory of each worker's own, in models | pages of files, in models |")
    print("| --- | --- | --- | --- |")
    for name, rows in found.items():
        own, files = (", ".join(f"{row[key]:.2f}" for row in rows) for key in ("own", "files"))
        print(f"| {name} | {rows[0]['bytes'] / 1e6:,.0f} | {own} | {files} |")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
