"""A tiny FFT model and its data, prepared once, for jobs on real workers."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import on_workers
import pytest
import ray.cloudpickle
from ground import (
    EVALUATION,
    FFT,
    MASK,
    MFT,
    ONE_LAYER,
    SETTINGS,
    UPPER_LAYER,
    Ground,
    Jobs,
    file_hashes,
    new_folder,
    run_group,
    scaling,
)

from mft_ray.config import ScalingConfig, parse_config
from mft_ray.masking import MaskSettings, fingerprint
from mft_ray.models.loading import load_model
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.prepare import make_ready
from mft_ray.training.job import TrainJob
from mft_ray.workers.launch import launch

# What is trained takes six bytes with its gradient and states.
LIGHT = {"optimizer": "adamw_8bit", "dtype": "bfloat16", "clip": 0.0}
EIGHT_BITS = importlib.util.find_spec("bitsandbytes") is not None
# Tokens of a micro-batch: a batch takes several, and not equally many in every step.
SMALL = 24


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
        return TrainJob("fft", ground.start, ground.data, str(new_folder(ground, name)), settings, EVALUATION, scaling)

    return make


@pytest.fixture(scope="session")
def mft_job(ground: Ground) -> Callable[..., TrainJob]:
    """Make a mask's job: name, scaling, its mask, and changes to its training settings."""

    def make(name: str, scaling: ScalingConfig, mask: MaskSettings = MASK, **train: Any) -> TrainJob:
        settings = MFT.model_copy(update=train)
        out = str(new_folder(ground, name))
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
            pretrained=ground.start,
        )

    return make


@pytest.fixture(scope="session")
def jobs(ground: Ground, fft_job: Callable[..., TrainJob], mft_job: Callable[..., TrainJob]) -> Jobs:
    """Jobs, done, by name: one group of one worker, one group of two."""
    partial = functools.partial
    done: Jobs = {}

    def add(make: Callable[..., TrainJob], name: str, *args: object, **train: object) -> TrainJob:
        done[name] = make(name, *args, **train)
        return done[name]

    def looked_into(workers: int, zero: int, **more: object) -> on_workers.Task:
        name = f"inside-z{zero}w{workers}" + "".join(f"-{value}" for value in more.values())
        train = {"eval_every": 1, "steps": 10, "clip": 0.0, "micro_batch_tokens": SMALL}
        job = add(mft_job, name, scaling(workers, zero, **more), ONE_LAYER, **train)
        return partial(on_workers.look_inside, job)

    def eight_bits(*tasks: Callable[[], on_workers.Task]) -> list[on_workers.Task]:
        return [task() for task in tasks] if EIGHT_BITS else []

    plain = on_workers.train_job
    run_group(
        1,
        [
            partial(plain, add(mft_job, "mft-z0w1", scaling())),
            partial(plain, add(mft_job, "micro-z0w1", scaling(), micro_batch_tokens=SMALL)),
            partial(plain, add(mft_job, "packed-z0w1", scaling(), micro_batch_tokens=SMALL, packing=True)),
            partial(plain, add(mft_job, "unclipped", scaling(), clip=0.0)),
            partial(on_workers.train_left, add(mft_job, "left-z0w1", scaling()), 8),
            partial(plain, add(mft_job, "bf16-z0w1", scaling(compute="bfloat16"))),
            partial(plain, add(mft_job, "computed-each-time", scaling(prefix_cache_gb=0), UPPER_LAYER)),
            partial(plain, add(mft_job, "kept", scaling(), UPPER_LAYER)),
            partial(plain, add(mft_job, "kept-before", scaling(), UPPER_LAYER)),  # what the last one kept is there
            looked_into(1, 0, compute="bfloat16"),
            looked_into(1, 0),
            partial(plain, add(mft_job, "rmsprop-z0w1", scaling(), optimizer="rmsprop")),
            *eight_bits(
                lambda: partial(plain, add(mft_job, "adamw_8bit-z0w1", scaling(), optimizer="adamw_8bit")),
                lambda: partial(plain, add(mft_job, "light-z0w1", scaling(), **LIGHT)),
                lambda: partial(plain, add(fft_job, "fft-light-z0w1", scaling(), **LIGHT)),
            ),
            *(partial(plain, add(mft_job, f"{name}-z0w1", scaling(), mask)) for name, mask in SETTINGS.items()),
        ],
        ground.root,
    )
    interrupted, left = on_workers.train_interrupted, on_workers.train_left
    run_group(
        2,
        [
            partial(plain, add(mft_job, "mft-z0w2", scaling(2, 0))),
            partial(plain, add(mft_job, "mft-z1w2", scaling(2, 1))),
            partial(plain, add(mft_job, "mft-z2w2", scaling(2, 2))),
            partial(plain, add(fft_job, "fft-z2w2", scaling(2, 2))),
            partial(on_workers.train_in_pieces, add(fft_job, "fft-pieces-z2w2", scaling(2, 2))),
            partial(plain, add(fft_job, "fft-offload-z2w2", scaling(2, 2, offload="cpu"))),
            partial(interrupted, add(mft_job, "offload-z1w2", scaling(2, 1, offload="cpu")), 15),
            partial(on_workers.train_in_pieces, add(mft_job, "pieces-z1w2", scaling(2, 1))),
            partial(plain, add(mft_job, "micro-z2w2", scaling(2, 2), micro_batch_tokens=SMALL)),
            partial(plain, add(mft_job, "packed-z2w2", scaling(2, 2), micro_batch_tokens=SMALL, packing=True)),
            partial(plain, add(mft_job, "bf16-z2w2", scaling(2, 2, compute="bfloat16"))),
            partial(interrupted, add(mft_job, "resumed-z2w2", scaling(2, 2)), 15),
            partial(left, add(mft_job, "left-z2w2", scaling(2, 2)), 8),
            partial(plain, add(fft_job, "fft-bf16-z2w2", scaling(2, 2, compute="bfloat16"), steps=20)),
            looked_into(2, 2, compute="bfloat16"),
            looked_into(2, 0),
            looked_into(2, 2),
            partial(plain, add(mft_job, "mft-z3w2", scaling(2, 3))),
            partial(plain, add(fft_job, "fft-z3w2", scaling(2, 3))),
            partial(plain, add(fft_job, "fft-offload-z3w2", scaling(2, 3, offload="cpu"))),
            partial(plain, add(mft_job, "bf16-z3w2", scaling(2, 3, compute="bfloat16"))),
            partial(interrupted, add(mft_job, "resumed-z3w2", scaling(2, 3)), 15),
            partial(left, add(mft_job, "left-z3w2", scaling(2, 3)), 8),
            looked_into(2, 3),
            partial(plain, add(mft_job, "rmsprop-z3w2", scaling(2, 3), optimizer="rmsprop")),
            *eight_bits(
                lambda: partial(plain, add(mft_job, "light-z0w2", scaling(2, 0), **LIGHT)),
                lambda: partial(interrupted, add(mft_job, "light-resumed-z0w2", scaling(2, 0), **LIGHT), 15),
                lambda: partial(plain, add(mft_job, "adamw_8bit-z2w2", scaling(2, 2), optimizer="adamw_8bit")),
                lambda: partial(
                    interrupted, add(mft_job, "adamw_8bit-z3w2", scaling(2, 3), optimizer="adamw_8bit"), 15
                ),
            ),
            *(partial(plain, add(mft_job, f"{name}-z3w2", scaling(2, 3), mask)) for name, mask in SETTINGS.items()),
        ],
        ground.root,
    )
    return done
