"""Do several masks of one FFT model vote better than one of them?

    .venv/bin/python benchmarks/votes.py RECIPES_RUN --out benchmarks/results/votes

reads what `mft-ray experiment recipes --config tune_spaces/experiments/recipes.yaml` left: in every
comparison three masks that differ in the seed of their batches. A weight is removed where any, most or all of them
remove it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from keep_run import keep
from study_runs import METRIC, comparisons, fft_model, options, over_seeds, scorer

from mft_ray.masking import load_mask

ROWS = ("anneal", "seed 2", "seed 3")
VOTES = {"any of three": 1, "two of three": 2, "all three": 3}


def judge(run: Path) -> dict[str, float]:
    """Return the difference to FFT on test of each mask and each vote of one comparison."""
    kept = [json.loads((run / "work" / "scores" / f"{name}-test-{METRIC}.json").read_text()) for name in ("fft", *ROWS)]
    fft, *singles = [sum(values) / len(values) for values in kept]
    masks = [load_mask(run / "methods" / name / "mask.safetensors").masks for name in ROWS]
    score = scorer(run, "test")
    found = {name: single - fft for name, single in zip(ROWS, singles, strict=True)}
    for name, least in VOTES.items():
        model = fft_model(run)
        with torch.no_grad():
            for weight in masks[0]:
                removed = sum((~mask[weight]).int() for mask in masks) >= least
                model.get_parameter(weight).masked_fill_(removed, 0.0)
        found[name] = score(model) - fft
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
            lines.append(f"| {panel} | {name} | {over_seeds([found[name] for found in mine])} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    told = options(__doc__)
    rows: list[dict[str, Any]] = []
    for about, run in comparisons(told.run, "recipes"):
        rows.append({**about, "found": judge(run)})
        print(rows[-1], flush=True)
    keep(told.out, page(rows, ".venv/bin/python benchmarks/votes.py RECIPES_RUN"), {"rows": rows})


if __name__ == "__main__":
    main()
