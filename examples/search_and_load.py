"""A search from Python: its verdict, its leaderboard, and the masked model.

python examples/search_and_load.py FOLDER
"""

from __future__ import annotations

import sys

import mft_ray

# The quickstart made small, with a model that has learned next to nothing. Without these it is the real one.
SMALL = {
    "fft.train.steps": 60,
    "fft.train.eval_every": 30,
    "data.n_validation": 100,
    "data.n_test": 100,
    "train.steps": 20,
    "train.eval_every": 10,
    "search.trials": 2,
}


def main(folder: str) -> None:
    """Search, tell what came of it, and load what it leaves."""
    run = mft_ray.search("quickstart", {**SMALL, "run.dir": folder})
    assert run.verdict is not None
    assert run.best is not None
    print(f"beats FFT: {run.verdict.beats_fft}; difference {run.verdict.delta:+.3f}, 95% interval {run.verdict.ci95}")
    for trial in run.leaderboard:
        print(trial.trial_id, trial.config["ratio"], trial.config["layers"], trial.score, trial.stopped_reason)
    model = mft_ray.load_masked(run.backbone, run.best.mask_path)
    zeros = sum(int((weight == 0).sum()) for weight in model.parameters())
    print(f"{zeros:,} of {model.num_parameters():,} weights are off")


if __name__ == "__main__":
    main(sys.argv[1])
