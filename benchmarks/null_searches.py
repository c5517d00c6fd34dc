"""Whole searches over masks that cannot help: how many say that one does?

    .venv/bin/python benchmarks/null_searches.py --out benchmarks/results/null_searches

Each search trains an FFT model of its own on two-digit arithmetic and then tries eight random masks that remove so few
weights that they hardly change it: the winner is chosen by chance, and the verdict has to say no. Real Ray, Optuna and
DeepSpeed, the same code as a user's search; what was finished in --work is kept.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from keep_run import keep

from mft_ray.config import parse_config
from mft_ray.evaluation.statistics import interval
from mft_ray.searches.pipeline import search
from mft_ray.workers.connection import connected

TREE: dict[str, Any] = {
    "model": {
        "architecture": {
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 192,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": 32,
        }
    },
    "data": {"task": "arithmetic", "digits": 2, "n_train": 3000, "n_validation": 500, "n_test": 2000},
    "evaluation": {"metric": "exact_match"},
    "fft": {"train": {"steps": 1000, "batch_size": 64, "lr": 3e-3, "eval_every": 250, "eval_batch_size": 500}},
    "train": {"batch_size": 64, "eval_batch_size": 500},
    "search": {
        "method": "random_mask",
        "trials": 8,
        "max_concurrent": 1,
        "space": {"ratio": [0.001, 0.002, 0.005, 0.01]},
        "stop": {"below_fft": False, "plateau": None},
    },
}


def run(work: Path, seed: int, trials: int) -> dict[str, Any]:
    """Run one search, unless that was done, and return what it says."""
    folder = work / f"seed-{seed}"
    if not (folder / "verdict.json").exists():
        tree = {**TREE, "run": {"dir": str(folder), "seed": seed, "export_model": False}}
        tree["search"] = {**TREE["search"], "trials": trials}
        if (folder / "config.yaml").exists():
            search(None, str(folder))
        else:
            search(parse_config(tree))
    verdict = json.loads((folder / "verdict.json").read_text())
    board = json.loads((folder / "leaderboard.json").read_text())["trials"]
    names = ("beats_fft", "better_than_fft", "fft", "mft", "delta", "ci95", "p_value", "n")
    gains = [row["delta_fft"] for row in board if row["delta_fft"] is not None]
    return {"seed": seed, **{name: verdict[name] for name in names}, "best_on_validation": max(gains)}


def page(rows: list[dict[str, Any]], command: str) -> str:
    claims = [float(row["beats_fft"]) for row in rows]
    low, high = interval(claims, binary=True)
    apparent = sum(row["best_on_validation"] > 0 for row in rows)
    lines = [
        "# null_searches",
        "",
        f"    {command}",
        "",
        f'{sum(claims):.0f} of {len(rows)} searches over masks that cannot help say "beats FFT" (95% interval '
        f"{low:.1%} to {high:.1%}). In {apparent} of them the winner looked better than FFT on validation.",
        "",
        "| seed | FFT (%) | winner (%) | − FFT (95%) | p | on validation | says |",
        "| --: | --: | --: | --: | --: | --: | --- |",
    ]
    for row in rows:
        cells = [
            str(row["seed"]),
            f"{100 * row['fft']:.2f}",
            f"{100 * row['mft']:.2f}",
            f"{100 * row['delta']:+.2f} [{100 * row['ci95'][0]:+.2f}, {100 * row['ci95'][1]:+.2f}]",
            f"{row['p_value']:.2f}",
            f"{100 * row['best_on_validation']:+.2f}",
            "yes" if row["beats_fft"] else "no",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--searches", type=int, default=20)
    arguments.add_argument("--trials", type=int, default=TREE["search"]["trials"])
    arguments.add_argument("--work", type=Path, default=Path("runs/null-searches"), help="run folders")
    arguments.add_argument("--out", type=Path, help="writes OUT.json and OUT.md")
    options = arguments.parse_args()
    rows, began = [], time.monotonic()
    with connected(num_cpus=1):
        for seed in range(options.searches):
            rows.append(run(options.work.resolve(), seed, options.trials))
            left = (time.monotonic() - began) / len(rows) * (options.searches - len(rows))
            print(f"{len(rows)} of {options.searches} searches, about {left:.0f} s left", flush=True)
    command = f".venv/bin/python benchmarks/null_searches.py --searches {options.searches} --trials {options.trials}"
    keep(options.out, page(rows, command), {"config": TREE, "rows": rows})


if __name__ == "__main__":
    main()
