"""The training job of a method: all get the same data and the same budget."""

from __future__ import annotations

from typing import Any

from mft_ray.config import METHODS, Config, ScalingConfig
from mft_ray.training.job import TrainJob


def train_job(
    method: str,
    config: Config,
    *,
    model: str,
    data: str,
    out: str,
    scaling: ScalingConfig,
    backbone: str = "",
    **more: Any,
) -> TrainJob:
    """Return the job that trains by a method.

    All but ``fft`` take the steps, batches and seed of ``train``: they see the same examples in the same order, and
    so the same tokens. Continued FFT has the optimizer's settings of ``fft.train``.

    Args:
        method: one of `mft_ray.config.METHODS`.
        config: resolved configuration.
        model: folder or hub id of what is trained, or masked.
        data: folder of the prepared splits.
        out: folder for the result.
        scaling: what the job asks of the cluster.
        backbone: fingerprint of ``model``, where that is frozen.
        more: other fields of `TrainJob`.
    """
    how = METHODS[method].recipe(config)
    return TrainJob(
        method=method,
        model=model,
        data=data,
        out=out,
        train=how.train,
        evaluation=config.evaluation,
        scaling=scaling,
        dtype=config.model.dtype,
        unselected_dtype=config.model.unselected_dtype if how.mask or how.lora else None,
        attention=config.model.attention,
        mask=how.mask,
        lora=how.lora,
        backbone=backbone,
        **more,
    )
