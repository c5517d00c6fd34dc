"""How long data takes to be encoded, and how much memory, by an earlier version and by this one.

    .venv/bin/python benchmarks/encoding.py MODEL TRAIN.jsonl --before c0fe60b [--times 8] [--out FILE]

The rows of a GSM8K file, so many times over with different numbers before them, by the tokenizer of a model. Both
versions run from a clone of their own, in this environment, one after the other. Memory is the most that the process
holds at once, beyond what imports take, and of the processes that it starts the largest one's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from versions import clone

MEASURED = """
import json, resource, sys, time
from pathlib import Path
from mft_ray.config import DataConfig
from mft_ray.data.store import open_split, prepare
from mft_ray.models.loading import load_tokenizer

model, train, folder = sys.argv[1:]
tokenizer = load_tokenizer(model)
peak = lambda who: 1024 * resource.getrusage(who).ru_maxrss
before, began = peak(resource.RUSAGE_SELF), time.monotonic()
config = DataConfig(task="gsm8k", train=train, n_validation=100, n_test=100)
prepare(config, tokenizer, Path(folder), lambda line: print(line, file=sys.stderr))
seconds = time.monotonic() - began
rows = sum(len(open_split(Path(folder), split)) for split in ("train", "validation", "test"))
held, others = peak(resource.RUSAGE_SELF) - before, peak(resource.RUSAGE_CHILDREN)
print(json.dumps({"rows": rows, "seconds": seconds, "held_bytes": held, "largest_other_bytes": others}))
"""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model")
    arguments.add_argument("train", type=Path)
    arguments.add_argument("--before", required=True, help="a commit")
    arguments.add_argument("--times", type=int, default=8)
    arguments.add_argument("--out", type=Path)
    options = arguments.parse_args()
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        train = Path(scratch) / "train.jsonl"
        rows = [json.loads(line) for line in options.train.read_text().splitlines()]
        train.write_text(
            "".join(
                json.dumps({**row, "question": f"{time} {row['question']}"}) + "\n"
                for time in range(options.times)
                for row in rows
            )
        )
        for name, commit in (("before", options.before), ("now", "HEAD")):
            code = clone(commit, Path(scratch) / name)
            command = [sys.executable, "-c", MEASURED, options.model, str(train), str(code / "run" / "data")]
            done = subprocess.run(
                command, env={**os.environ, "PYTHONPATH": str(code)}, check=True, stdout=subprocess.PIPE, text=True
            )
            found[name] = json.loads(done.stdout)
    print("| | rows | s | rows/s | held, MB | largest other process, MB |\n| --- | --- | --- | --- | --- | --- |")
    for name, row in found.items():
        print(
            f"| {name} | {row['rows']:,} | {row['seconds']:.1f} | {row['rows'] / row['seconds']:,.0f} | "
            f"{row['held_bytes'] / 1e6:,.0f} | {row['largest_other_bytes'] / 1e6:,.0f} |"
        )
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
