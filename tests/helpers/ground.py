"""Settings and steps that the tests of training on real workers share."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import on_workers
import ray.train
import ray.train.torch

from mft_ray.config import EvaluationConfig, ScalingConfig, TrainConfig
from mft_ray.masking import MaskSettings
from mft_ray.training.job import Outcome, TrainJob
from mft_ray.workers.group import worker_environment, worker_resources

# A continuous metric, so that runs can be compared closely.
EVALUATION = EvaluationConfig(metric="answer_logprob")
FFT = TrainConfig(steps=40, batch_size=16, lr=3e-3, eval_every=10, warmup=0.1)
# Clipped to the size of Adam's epsilon: only there does clipping change Adam's steps, so only there would runs
# that get the norm of sharded or accumulated gradients wrong differ.
MFT = TrainConfig(steps=20, batch_size=16, lr=1e-2, eval_every=5, warmup=0.2, clip=1e-6)
# Only the last evaluation is eligible, so that masks of the same step are compared.
MASK = MaskSettings(ratio=0.3, init="magnitude", schedule="anneal", anneal_fraction=1.0)


# A part of the model, so that a checkpoint's size tells whether the rest is in it.
ONE_LAYER = MaskSettings(ratio=0.3, layers="0", target="attn")
UPPER_LAYER = MaskSettings(ratio=0.3, layers="1")
# What else a mask can be, each with what is special about sharding it.
SETTINGS = {
    "model": replace(MASK, scope="model"),  # all scores are ranked together
    "pattern": replace(MASK, ratio=0.5, pattern="2:4"),
    "soft": replace(MASK, hardness="soft"),  # the forward computes with scores
    "delta": replace(MASK, removes="delta"),  # the backward needs a second weight
    "wanda": replace(MASK, init="wanda"),  # the start depends on activations
    "threshold": MaskSettings(rule="threshold", init="normal"),
}
Jobs = dict[str, TrainJob]


@dataclass(frozen=True)
class Ground:
    """What jobs start from."""

    root: Path
    start: str
    data: str
    backbone: str
    fingerprint: str
    files: dict[str, str]
    fft: Outcome


def scaling(workers: int = 1, zero: int = 0, **more: Any) -> ScalingConfig:
    # Half a CPU each: a group starts while the last one's CPUs are still being given back.
    return ScalingConfig(workers=workers, zero_stage=zero, cpus_per_worker=0.5, **{"max_failures": 0, **more})


def file_hashes(folder: str | Path) -> dict[str, str]:
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {os.fspath(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def comparable(outcome: Outcome) -> list[dict[str, Any]]:
    """Return a history without what no two runs share."""
    # As text: a NaN equals no other.
    differs = ("seconds", "memory")
    return [{name: str(value) for name, value in asdict(row).items() if name not in differs} for row in outcome.history]


def run_group(workers: int, tasks: Sequence[on_workers.Task], out: Path) -> None:
    trainer = ray.train.torch.TorchTrainer(
        on_workers.work,
        train_loop_config={"tasks": tasks},
        scaling_config=ray.train.ScalingConfig(num_workers=workers, resources_per_worker=worker_resources(scaling())),
        run_config=ray.train.RunConfig(storage_path=str(out), worker_runtime_env={"env_vars": worker_environment()}),
    )
    trainer.fit()


def new_folder(ground: Ground, name: str) -> Path:
    path = ground.root / name
    path.mkdir()
    return path
