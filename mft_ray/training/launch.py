"""Run a training job as a Ray Train worker group, and wait for it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch

from mft_ray.config import ScalingConfig
from mft_ray.errors import RunFailed, UserError
from mft_ray.training.job import Evaluation, Outcome, StopRule, TrainJob

# What the other workers say when one of them is gone.
_LOST_PEER = re.compile(r"gloo|nccl|connection (reset|closed)", re.IGNORECASE)


def launch(
    job: TrainJob, stop: StopRule | None = None, callbacks: list[ray.train.UserCallback] | None = None
) -> Outcome:
    """Train on a fresh group of workers and return the outcome. A run that has one already is not repeated.

    Args:
        job: what to train, and what it asks of the cluster.
        stop: asked after every evaluation, where it is made, so that all workers stop together.
        callbacks: told of every report by Ray Train.

    Raises:
        RunFailed: it failed on every allowed try; the message is the worker's.
    """
    outcome = Path(job.out) / "outcome.json"
    if outcome.exists():
        return Outcome.load(outcome)
    Path(job.out).mkdir(parents=True, exist_ok=True)
    # Ray Train gives up on a worker group after this long; an autoscaling cluster needs minutes for a node.
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(job.scaling.wait_for_resources_s)
    trainer = ray.train.torch.TorchTrainer(
        _worker,
        train_loop_config={"job": job, "stop": stop},
        scaling_config=ray.train.ScalingConfig(
            num_workers=job.scaling.workers,
            use_gpu=job.scaling.gpus_per_worker > 0,
            resources_per_worker=worker_resources(job.scaling),
        ),
        run_config=ray.train.RunConfig(
            name="train",
            storage_path=str(Path(job.out) / "ray"),
            # Without a limit on the controller, a group that cannot start is retried for ever.
            failure_config=ray.train.FailureConfig(max_failures=job.scaling.max_failures, controller_failure_limit=2),
            callbacks=callbacks or [],
            worker_runtime_env={"env_vars": worker_environment()},
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise RunFailed(_root_cause(error)) from error
    return Outcome.load(outcome)


def worker_resources(scaling: ScalingConfig) -> dict[str, float]:
    """Return what one worker reserves."""
    resources = {"CPU": scaling.cpus_per_worker}
    return {**resources, "GPU": scaling.gpus_per_worker} if scaling.gpus_per_worker else resources


def worker_environment() -> dict[str, str]:
    """Return settings that workers need and that must not depend on which node they land on."""
    settings = {
        "TOKENIZERS_PARALLELISM": "false",
        "DS_IGNORE_CUDA_DETECTION": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    passed_on = {name: os.environ[name] for name in ("HF_HOME", "HF_HUB_OFFLINE", "HF_TOKEN") if name in os.environ}
    return {**settings, **passed_on}


def metrics_of(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation as the flat metrics that Ray reports."""
    return asdict(evaluation)


def _worker(config: Mapping[str, Any]) -> None:
    from mft_ray.training.loop import train  # imports torch and DeepSpeed, which only workers need

    train(
        config["job"],
        ray.train.torch.get_device(),
        config["stop"],
        report=lambda evaluation: ray.train.report(metrics_of(evaluation)),
    )


def _root_cause(error: BaseException) -> str:
    """Return in one line what the worker that failed first said, not those that lost it as their peer."""
    failures = list((getattr(error, "worker_failures", None) or {}).values())
    cause: BaseException = min(failures or [error], key=lambda failure: bool(_LOST_PEER.search(str(failure))))
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    if not lines:
        return type(cause).__name__
    if _LOST_PEER.search(str(cause)):
        return f"a worker lost contact with another one, which has probably died or run out of memory ({lines[0]})"
    # What Ray says of a dead worker ends in guesses that are no news.
    text = lines[-1].partition(" Some common causes")[0]
    # "KeyError: 'id'" says more than "'id'"; our own messages are sentences.
    plain = cause is error or isinstance(cause, UserError | ArithmeticError | RuntimeError)
    return text if plain else f"{type(cause).__name__}: {text}"
