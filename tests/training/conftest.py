"""A tiny FFT model and its data, prepared once, for jobs on real workers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import on_workers
import pytest
import ray
import ray.cloudpickle

from mft_ray.config import EvaluationConfig, ScalingConfig, TrainConfig, parse_config
from mft_ray.masking import MaskSettings, fingerprint
from mft_ray.search.folder import RunFolder
from mft_ray.search.preparation import make_ready
from mft_ray.training.backbone import load_model
from mft_ray.training.job import Outcome, TrainJob
from mft_ray.training.launch import launch

# A continuous metric, so that runs can be compared closely.
EVALUATION = EvaluationConfig(metric="answer_logprob")
FFT = TrainConfig(steps=40, batch_size=16, lr=3e-3, eval_every=10, warmup=0.1)
# Clipped to the size of Adam's epsilon: only there does clipping change Adam's steps, so only there would runs
# that get the norm of sharded or accumulated gradients wrong differ.
MFT = TrainConfig(steps=20, batch_size=16, lr=1e-2, eval_every=5, warmup=0.2, clip=1e-6)
# Only the last evaluation is eligible, so that masks of the same step are compared.
MASK = MaskSettings(ratio=0.3, init="magnitude", schedule="anneal", anneal_fraction=1.0)


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


@pytest.fixture(scope="session")
def ground(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """Data, the start model, and the FFT model that all masks are learned on, trained by one worker."""
    # Workers cannot import this folder.
    ray.cloudpickle.register_pickle_by_value(on_workers)
    root = tmp_path_factory.mktemp("training")
    llama = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = parse_config(
        {
            "model": {"architecture": {**llama, "num_attention_heads": 4, "max_position_embeddings": 32}},
            "data": {"task": "arithmetic", "digits": 1, "n_train": 60, "n_validation": 41, "n_test": 40},
        }
    )
    folder = RunFolder(root / "run")
    start = make_ready(config, folder)
    data = str(folder.data)
    out = root / "fft"
    outcome = launch(TrainJob("fft", start, data, str(out), FFT, EVALUATION, scaling()))
    backbone = str(out / "best")
    return Ground(root, start, data, backbone, fingerprint(load_model(backbone)), file_hashes(backbone), outcome)


@pytest.fixture(scope="session")
def fft_job(ground: Ground) -> Callable[..., TrainJob]:
    """Make an FFT job: name, scaling and changes to its training settings."""

    def make(name: str, scaling: ScalingConfig, **train: Any) -> TrainJob:
        settings = FFT.model_copy(update=train)
        return TrainJob("fft", ground.start, ground.data, str(_new(ground, name)), settings, EVALUATION, scaling)

    return make


@pytest.fixture(scope="session")
def mft_job(ground: Ground) -> Callable[..., TrainJob]:
    """Make a mask's job: name, scaling, its mask, and changes to its training settings."""

    def make(name: str, scaling: ScalingConfig, mask: MaskSettings = MASK, **train: Any) -> TrainJob:
        settings = MFT.model_copy(update=train)
        out = str(_new(ground, name))
        dtype = "bfloat16" if scaling.compute == "bfloat16" else "float32"
        return TrainJob(
            method="mft",
            model=ground.backbone,
            data=ground.data,
            out=out,
            train=settings,
            evaluation=EVALUATION,
            scaling=scaling,
            dtype=dtype,
            mask=mask,
            backbone=ground.fingerprint,
        )

    return make


def _new(ground: Ground, name: str) -> Path:
    path = ground.root / name
    path.mkdir()
    return path
