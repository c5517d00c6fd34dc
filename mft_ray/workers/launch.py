"""Run one training job on a worker group of its own, and wait for it."""

from __future__ import annotations

from pathlib import Path

from mft_ray.training.job import Outcome, StopRule, TrainJob
from mft_ray.workers.group import Heard, workers


def launch(job: TrainJob, stop: StopRule | None = None, heard: Heard | None = None) -> Outcome:
    """Train on a fresh group of workers and return the outcome. A run that has one already is not repeated.

    Args:
        job: what to train, and what it asks of the cluster.
        stop: asked after every evaluation, where it is made, so that all workers stop together.
        heard: told of every evaluation.

    Raises:
        RunFailed: it failed on every allowed try; the message is the worker's.
    """
    with workers(job.scaling, Path(job.out) / "ray") as group:
        return group.train(job, stop, heard)
