"""Are masks as good that are learned with less memory? The same masks by each optimizer, on one FFT model.

    .venv/bin/python benchmarks/optimizers.py RUN [--steps 600] [--seeds 5] [--only 'adamw;adamw_8bit'] [--out FILE]

RUN is the folder of a finished search: its FFT model, data and settings are used. Every mask (four starts, ratios and
learning rates) is learned with each optimizer and seed, all on one worker group; scores are on the validation split.
With several seeds, differences to adamw are those of the same mask and seed, and the error is that of their mean.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

from mft_ray.config import load_config
from mft_ray.masking import MaskSettings
from mft_ray.runs.fft_model import FftModel
from mft_ray.runs.folder import RunFolder
from mft_ray.training.job import TrainJob
from mft_ray.workers.connection import connected
from mft_ray.workers.group import WorkerGroup

POINTS: list[tuple[dict[str, Any], float]] = [
    ({"ratio": 0.3, "init": "normal", "schedule": "anneal"}, 3e-4),
    ({"ratio": 0.3, "init": "magnitude", "schedule": "anneal"}, 3e-3),
    ({"ratio": 0.5, "init": "magnitude", "schedule": "anneal"}, 3e-3),
    ({"ratio": 0.1, "init": "normal", "schedule": "constant"}, 1e-3),
]


WAYS: dict[str, dict[str, str]] = {
    "adamw": {},
    "rmsprop": {"optimizer": "rmsprop"},
    "adamw_8bit": {"optimizer": "adamw_8bit"},
    "adamw_8bit, bfloat16": {"optimizer": "adamw_8bit", "dtype": "bfloat16"},
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("run", type=Path)
    arguments.add_argument("--steps", type=int, default=600)
    arguments.add_argument("--seeds", type=int, default=5)
    arguments.add_argument("--only", help="some of the ways, by ;")
    arguments.add_argument("--out", type=Path)
    options = arguments.parse_args()
    ways = options.only.split(";") if options.only else list(WAYS)
    folder = RunFolder(options.run.resolve())
    config = load_config(folder.config).seeded()
    baseline = FftModel.load(folder.fft_model)
    rows = []
    print(
        f"FFT {baseline.score:.4f}\n| mask | lr | seed | {' | '.join(ways)} |\n{'| --- ' * (3 + len(ways))}|",
        flush=True,
    )
    with connected(), tempfile.TemporaryDirectory() as scratch:
        group = WorkerGroup(config.scaling, Path(scratch) / "group")
        for number, (settings, lr) in enumerate(POINTS):
            for seed in range(options.seeds):
                scores: dict[str, float] = {}
                for way in ways:
                    out = Path(scratch) / f"{number}-{seed}-{ways.index(way)}"
                    out.mkdir()
                    update = {**WAYS[way], "lr": lr, "steps": options.steps, "seed": seed}
                    job = TrainJob(
                        method="mft",
                        model=baseline.model,
                        data=str(folder.data),
                        out=str(out),
                        train=config.train.model_copy(update=update),
                        evaluation=config.evaluation,
                        scaling=config.scaling,
                        mask=MaskSettings(**settings),
                    )
                    best = group.train(job).best_evaluation
                    assert best is not None
                    scores[way] = best.score
                rows.append({**settings, "lr": lr, "seed": seed, "scores": scores})
                shown = " | ".join(f"{score:.4f}" for score in scores.values())
                print(f"| {settings} | {lr:g} | {seed} | {shown} |", flush=True)
        group.close()
    if "adamw" in ways:
        for way in ways[1:]:
            differences = [row["scores"][way] - row["scores"]["adamw"] for row in rows]
            error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(rows) > 1 else math.nan
            print(f"{way} - adamw: {statistics.mean(differences):+.4f} ± {error:.4f} of {len(rows)}")
    if options.out:
        options.out.write_text(json.dumps({"fft": baseline.score, "steps": options.steps, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
