"""Do several masks of one FFT model vote better than one of them?

    .venv/bin/python benchmarks/votes.py RECIPES_RUN --out benchmarks/results/votes

reads what `python -m mft_ray.study recipes --config tune_spaces/study/recipes.yaml` left: in every comparison three
masks that differ in the seed of their batches. A weight is removed where any, most or all of them remove it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from keep_run import keep

from mft_ray.data.prepare import open_split
from mft_ray.evaluation.metrics import per_example
from mft_ray.evaluation.statistics import interval
from mft_ray.masking import load_mask
from mft_ray.training.backbone import load_model, load_tokenizer

ROWS = ("anneal", "seed 2", "seed 3")
VOTES = {"any of three": 1, "two of three": 2, "all three": 3}
METRIC = "exact_match"


def judge(run: Path) -> dict[str, float]:
    """Return the difference to FFT on test of each mask and each vote of one comparison."""
    kept = [json.loads((run / "work" / "scores" / f"{name}-test-{METRIC}.json").read_text()) for name in ("fft", *ROWS)]
    fft, *singles = [sum(values) / len(values) for values in kept]
    masks = [load_mask(run / "methods" / name / "mask.safetensors").masks for name in ROWS]
    data = run / "work" / "data"
    tokenizer, rows = load_tokenizer(data / "tokenizer"), list(open_split(data, "test"))
    ids = {"pad_id": tokenizer.pad_token_id, "eos_id": tokenizer.eos_token_id}
    found = {name: score - fft for name, score in zip(ROWS, singles, strict=True)}
    for name, least in VOTES.items():
        model = load_model(run / "work" / "fft" / "best")
        with torch.no_grad():
            for weight in masks[0]:
                removed = sum((~mask[weight]).int() for mask in masks) >= least
                model.get_parameter(weight).masked_fill_(removed, 0.0)
        values = per_example(model, rows, METRIC, **ids, batch_size=1000, device="cpu")
        found[name] = sum(values) / len(values) - fft
    return found


def page(rows: list[dict[str, Any]], command: str) -> str:
    lines = [
        "# votes",
        "",
        f"    {command}",
        "",
        "Points of exact match on test over the FFT model of the same seed; Student's 95% interval over seeds.",
        "",
        "| task | mask | − FFT (95%) | each seed |",
        "| --- | --- | --: | --- |",
    ]
    for panel in dict.fromkeys(row["panel"] for row in rows):
        mine = [row["found"] for row in rows if row["panel"] == panel]
        for name in (*ROWS, *VOTES):
            gains = [100 * found[name] for found in mine]
            low, high = interval(gains, binary=False)
            each = ", ".join(f"{gain:+.2f}" for gain in gains)
            lines.append(f"| {panel} | {name} | {sum(gains) / len(gains):+.2f} [{low:+.2f}, {high:+.2f}] | {each} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("run", type=Path)
    arguments.add_argument("--out", type=Path, help="writes OUT.json and OUT.md")
    options = arguments.parse_args()
    rows: list[dict[str, Any]] = []
    for run in sorted((options.run / "runs").glob("recipes/seed-*/*")):
        rows.append({"seed": run.parent.name, "panel": run.name, "found": judge(run)})
        print(rows[-1], flush=True)
    keep(options.out, page(rows, ".venv/bin/python benchmarks/votes.py RECIPES_RUN"), {"rows": rows})


if __name__ == "__main__":
    main()
