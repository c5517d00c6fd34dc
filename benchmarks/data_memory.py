"""What a worker needs to open a large split: seconds, and memory, beside what it did before (Python lists).

    .venv/bin/python benchmarks/data_memory.py [--rows 1000000] [--tokens 512] [--lists 20000] [--out FILE]

The data is generated, and deleted again: 8 bytes a token of the temporary disk. Each way is measured in a process of
its own: memory that it holds itself (not pages of files), beyond what imports take. Rows are then read in random order,
as training reads them. ``lists`` is measured on the first so many rows only.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import psutil
import pyarrow as pa

from mft_ray.data.encoded import EncodedRows
from mft_ray.data.encoding import IGNORED
from mft_ray.data.pieces import FEATURES
from mft_ray.data.store import open_split

PIECE, READ = 10_000, 2_000


def generate(folder: Path, rows: int, tokens: int) -> None:
    """Write a split."""
    many, few = (np.arange(0, (PIECE + 1) * length, length, dtype=np.int32) for length in (tokens, 8))
    ids = np.arange(PIECE * tokens, dtype=np.int32) % 30_000
    labels = np.where(np.arange(PIECE * tokens) % tokens < tokens // 2, IGNORED, ids).astype(np.int32)
    names = pa.array([str(number) for number in range(PIECE)])
    piece = pa.table(
        {
            "id": names,
            "input_ids": pa.ListArray.from_arrays(many, ids),
            "labels": pa.ListArray.from_arrays(many, labels),
            "prompt_ids": pa.ListArray.from_arrays(few, ids[: PIECE * 8]),
            "answer": names,
            "source": names,
            "answer_tokens": pa.array(np.full(PIECE, tokens // 2, np.int32)),
        }
    ).cast(FEATURES.arrow_schema)
    # The same piece again and again takes no memory here, and its own place on the disk.
    datasets.Dataset(pa.concat_tables([piece] * (rows // PIECE))).save_to_disk(str(folder / "train"))


def mapped(folder: Path, _: int) -> Any:
    """As it is now."""
    rows = EncodedRows.open(folder, "train")
    return rows, rows.lengths(), rows.answer_lengths()


def lists(folder: Path, count: int) -> Any:
    """As it was before."""
    rows = list(open_split(folder, "train").select(range(count)))
    return rows, [len(row["input_ids"]) for row in rows], [sum(x != IGNORED for x in row["labels"]) for row in rows]


def measured(way: Callable[[Path, int], Any], folder: Path, count: int, tell: Any) -> None:
    """Open a split and read of it, in a process of its own."""
    before, began = own_memory(), time.perf_counter()
    rows, lengths, _ = way(folder, count)
    opened, held = time.perf_counter() - began, own_memory() - before
    order = random.Random(0).sample(range(len(rows)), READ)
    began = time.perf_counter()
    read = sum(len(rows[place]["input_ids"]) for place in order)
    tell.put(
        {
            "rows": len(rows),
            "open_s": opened,
            "held_bytes": held,
            "bytes_a_token": held / sum(lengths),
            "after_reading_bytes": own_memory() - before,
            "us_a_row": 1e6 * (time.perf_counter() - began) / READ,
            "read_tokens": read,
        }
    )


def own_memory() -> int:
    """Return the bytes that this process holds, without those of files."""
    memory = psutil.Process().memory_info()
    return int(memory.rss - memory.shared)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, default=1_000_000)
    arguments.add_argument("--tokens", type=int, default=512)
    arguments.add_argument("--lists", type=int, default=20_000)
    arguments.add_argument("--out", type=Path)
    options = arguments.parse_args()
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        generate(folder, options.rows, options.tokens)
        processes = multiprocessing.get_context("spawn")
        for way, count in ((lists, options.lists), (mapped, options.rows)):
            told = processes.Queue()
            process = processes.Process(target=measured, args=(way, folder, count, told))
            process.start()
            found[way.__name__] = told.get(timeout=600)
            process.join()
    print(f"\n{options.rows:,} rows of {options.tokens} tokens\n")
    print("| | rows | open, s | held, MB | bytes a token | a row, µs |\n| --- | --- | --- | --- | --- | --- |")
    for name, row in found.items():
        print(
            f"| {name} | {row['rows']:,} | {row['open_s']:.2f} | {row['held_bytes'] / 1e6:.0f} | "
            f"{row['bytes_a_token']:.2f} | {row['us_a_row']:.0f} |"
        )
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
