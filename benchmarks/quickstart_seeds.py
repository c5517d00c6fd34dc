"""Run the whole quickstart for several seeds and write down what each says.

    .venv/bin/python benchmarks/quickstart_seeds.py --seeds 0 1 2 3 4 --runs runs/seeds

Seeds whose run folder holds a verdict are not run again. Writes benchmarks/results/quickstart.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from keep_run import machine

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    arguments.add_argument("--runs", type=Path, default=ROOT / "runs" / "seeds")
    options = arguments.parse_args()
    rows = []
    for seed in options.seeds:
        run = options.runs.resolve() / f"seed-{seed}"
        if not (run / "report.html").exists():
            search(seed, run)
        rows.append(row(seed, run))
        write(rows, options.seeds)


def search(seed: int, run: Path) -> None:
    command = [sys.executable, "cluster/local.py", "--", "python", "-m", "mft_ray.tune"]
    command += ["--config", "tune_spaces/quickstart.yaml", "--set", f"run.seed={seed}", "--set", f"run.dir={run}"]
    subprocess.run(command, cwd=ROOT, check=True)


def row(seed: int, run: Path) -> dict[str, Any]:
    verdict, baseline, leaderboard = (
        json.loads((run / f"{name}.json").read_text()) for name in ("verdict", "baseline", "leaderboard")
    )
    trials = leaderboard["trials"]
    winner = next(trial for trial in trials if trial["trial_id"] == verdict["trial_id"])
    preset = next(trial for trial in trials if trial["config"]["lr"] == 2e-5)
    baseline.pop("model")  # a folder of this machine
    return {
        "seed": seed,
        "verdict": verdict,
        "baseline": baseline,
        "winner": winner,
        "paper_preset": preset,
        "trials": len(trials),
        "stopped_early": sum(trial["status"] == "stopped" for trial in trials),
    }


def write(rows: list[dict[str, Any]], seeds: list[int]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "quickstart.json").write_text(json.dumps({"machine": machine(), "seeds": rows}, indent=1) + "\n")
    (RESULTS / "quickstart.md").write_text(page(rows, seeds, machine()))


def page(rows: list[dict[str, Any]], seeds: list[int], versions: dict[str, str]) -> str:
    lines = [
        "# What the quickstart says, seed by seed",
        "",
        f"    python benchmarks/quickstart_seeds.py --seeds {' '.join(map(str, seeds))}",
        "",
        f"Two CPU cores, {', '.join(f'{name} {value}' for name, value in versions.items())}. Exact match in percent",
        "on untouched test examples; intervals are 95% paired bootstrap, p is exact McNemar. A seed changes data,",
        "splits, initial weights, batches and search alike. Nothing was chosen by its result.",
        "",
        "| seed | n | FFT | mask | mask − FFT | p | continued FFT | mask − continued | winner | preset* |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [_line(entry) for entry in rows]
    beats = sum(entry["verdict"]["better_than_fft"] for entry in rows)
    both = sum(entry["verdict"]["beats_fft"] for entry in rows)
    lines += [
        "",
        "\\* best validation score less FFT's, of the paper's preset (always the first trial).",
        "",
        f"Beats FFT beyond chance: {beats} of {len(rows)} seeds. Beats continued FFT as well: {both} of {len(rows)}.",
        "",
        *(f"- seed {entry['seed']}: {entry['verdict']['sentence']}" for entry in rows),
    ]
    return "\n".join(lines) + "\n"


def _line(entry: dict[str, Any]) -> str:
    verdict, winner, preset = entry["verdict"], entry["winner"]["config"], entry["paper_preset"]
    cells = [
        str(entry["seed"]),
        f"{verdict['n']:,}",
        f"{100 * verdict['fft']:.2f}",
        f"{100 * verdict['mft']:.2f}",
        _difference(verdict["delta"], verdict["ci95"]),
        f"{verdict['p_value']:.2g}",
        f"{100 * verdict['continued_fft']:.2f}",
        _difference(verdict["delta_continued_fft"], verdict["ci95_continued_fft"]),
        f"r {winner['ratio']:.2f}, {winner['layers']}, {winner['init']} {winner['schedule']}, lr {winner['lr']:.1e}",
        "–" if preset["delta_fft"] is None else f"{100 * preset['delta_fft']:+.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def _difference(delta: float, interval: list[float]) -> str:
    return f"{100 * delta:+.2f} [{100 * interval[0]:+.2f}, {100 * interval[1]:+.2f}]"


if __name__ == "__main__":
    main()
