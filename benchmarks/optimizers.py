"""Are masks learned with the one-state optimizer as good? The same masks by adamw and by rmsprop, on one FFT model.

    .venv/bin/python benchmarks/optimizers.py RUN [--steps 600] [--out FILE]

RUN is the folder of a finished search: its FFT model, data and settings are used. Every mask (four starts, ratios and
learning rates) is learned once with each optimizer, all on one worker group; scores are on the validation split.
"""

from __future__ import annotations

import argparse
import json
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


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("run", type=Path)
    arguments.add_argument("--steps", type=int, default=600)
    arguments.add_argument("--out", type=Path)
    options = arguments.parse_args()
    folder = RunFolder(options.run.resolve())
    config = load_config(folder.config).seeded()
    baseline = FftModel.load(folder.fft_model)
    rows = []
    print("| mask | lr | adamw | rmsprop |\n| --- | --- | --- | --- |")
    print(f"| FFT | | {baseline.score:.4f} | |", flush=True)
    with connected(), tempfile.TemporaryDirectory() as scratch:
        group = WorkerGroup(config.scaling, Path(scratch) / "group")
        for number, (settings, lr) in enumerate(POINTS):
            scores = {}
            for optimizer in ("adamw", "rmsprop"):
                update = {"optimizer": optimizer, "lr": lr, "steps": options.steps}
                out = Path(scratch) / f"{number}-{optimizer}"
                out.mkdir()
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
                scores[optimizer] = best.score if best else None
            rows.append({**settings, "lr": lr, **scores})
            print(f"| {settings} | {lr:g} | {scores['adamw']:.4f} | {scores['rmsprop']:.4f} |", flush=True)
        group.close()
    if options.out:
        options.out.write_text(json.dumps({"fft": baseline.score, "steps": options.steps, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
