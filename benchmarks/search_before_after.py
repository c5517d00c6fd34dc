"""The same search by an earlier version and by this one: eight masks over three layer groups of a fine-tuned model.

    .venv/bin/python benchmarks/search_before_after.py MODEL TRAIN.jsonl --before 54b60c0 [--out FILE]

Both run from a clone of their own, in this environment, one after the other, with nothing beside them. Trials are the
same eight, whole (no early stopping), one at a time with all processors. With --auto, this version once more with
``scaling.compute: auto``: bfloat16 where the processor multiplies it. Seconds of trials are those that they report; the
whole is from the command to its verdict, which is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from versions import clone

GROUPS = ("4-7", "20-23", "26-29")


def config(model: str, train: str, run: Path, compute: str) -> dict[str, Any]:
    points = [
        {"ratio": ratio, "layers": layers, "lr": 1e-3, "init": "magnitude", "schedule": "anneal"}
        for layers in GROUPS
        for ratio in (0.05, 0.1, 0.2)
    ]
    learning = {"steps": 4, "batch_size": 8, "eval_every": 2, "eval_batch_size": 8}
    return {
        "run": {"dir": str(run), "export_model": False},
        "model": {"path": model},
        "data": {"task": "gsm8k", "train": train, "n_train": 16, "n_validation": 8, "n_test": 8, "max_length": 320},
        "evaluation": {"metric": "answer_logprob"},
        "scaling": {"compute": compute, "cpus_per_worker": os.cpu_count()},
        "fft": {"given": True, "train": {"batch_size": 8, "lr": 2e-5}},
        "train": learning,
        "search": {
            "trials": 8,
            "max_concurrent": 1,
            "stop": {"below_fft": False, "plateau": None},
            "space": {"ratio": [0.05, 0.1, 0.2], "layers": list(GROUPS), "lr": [1e-3]},
            "extra_points": points[:7],
        },
    }


def search(code: Path, tree: dict[str, Any], log: Path) -> dict[str, float]:
    """Run a search with some version's code; return its seconds."""
    file = log.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(tree))
    command, environment = [sys.executable, "-m", "mft_ray.tune", "--config", str(file)], {"PYTHONPATH": str(code)}
    began = time.monotonic()
    with (
        log.open("w") as out,
        subprocess.Popen(
            command, cwd=code, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=out, text=True
        ) as running,
    ):
        assert running.stdout
        for line in running.stdout:
            out.write(line)
            if "3/4 verdict" in line:  # which trains FFT on: the same in both versions
                break
        whole = time.monotonic() - began
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=300)
    trials = [json.loads(path.read_text()) for path in Path(tree["run"]["dir"]).glob("work/trials/*/outcome.json")]
    spent = [trial["cost"]["seconds"] for trial in trials]
    scores = sorted(max(row["score"] for row in trial["history"]) for trial in trials)
    return {"trials": len(trials), "whole_s": whole, "trials_s": sum(spent), "best": scores[-1], "worst": scores[0]}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model")
    arguments.add_argument("train")
    arguments.add_argument("--before", required=True, help="a commit")
    arguments.add_argument("--auto", action="store_true")
    arguments.add_argument("--out", type=Path)
    options = arguments.parse_args()
    model, train = (str(Path(given).resolve()) for given in (options.model, options.train))
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        versions = [("before", options.before, "float32"), ("now", "HEAD", "float32"), ("now, auto", "HEAD", "auto")]
        for name, commit, compute in versions if options.auto else versions[:2]:
            code = clone(commit, root / name.replace(", ", "-"))
            rows[name] = search(code, config(model, train, code / "run", compute), root / f"{code.name}.log")
            print(f"{name}: {rows[name]}", flush=True)
    print("\n| | trials, s | gain | from the command to the verdict, s | gain | best and worst trial |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, row in rows.items():
        gains = [rows["before"][column] / row[column] for column in ("trials_s", "whole_s")]
        print(
            f"| {name} | {row['trials_s']:.0f} | {gains[0]:.2f} | {row['whole_s']:.0f} | {gains[1]:.2f} | "
            f"{row['best']:.4f}, {row['worst']:.4f} |"
        )
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
