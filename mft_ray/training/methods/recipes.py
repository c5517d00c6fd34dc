"""The methods by name, and how each follows from one configuration: all get the same data and the same budget."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from mft_ray.config import Config, LoraConfig, ScalingConfig, TrainConfig
from mft_ray.masking import Init, MaskSettings
from mft_ray.training.job import TrainJob

# Masks that are cut once, by scores that are not trained: what a learned one has to beat.
ONE_SHOT: dict[str, Init] = {"random_mask": "normal", "l1_mask": "magnitude", "wanda_mask": "wanda"}
MASKED = ("mft", "movement", *ONE_SHOT)


@dataclass(frozen=True)
class Recipe:
    """How one method trains.

    Attributes:
        train: its steps.
        mask: of the methods that mask.
        lora: of LoRA.
    """

    train: TrainConfig
    mask: MaskSettings | None = None
    lora: LoraConfig | None = None


def recipe(method: str, config: Config) -> Recipe:
    """Return how a method trains under a configuration.

    All but ``fft`` take the steps, batches and seed of ``train``: they see the same examples in the same order, and
    so the same tokens. Continued FFT has the optimizer's settings of ``fft.train``.

    Args:
        method: one of `mft_ray.config.METHODS`.
        config: ``train``, ``mask``, ``lora`` and ``fft`` are used.
    """
    if method == "fft":
        return Recipe(config.fft.train)
    if method == "continued_fft":
        return Recipe(_as_fft(config))
    if method == "lora":
        lr = config.lora.lr or config.train.lr
        return Recipe(config.train.model_copy(update={"lr": lr}), lora=config.lora)
    mask, train = config.mask, config.train
    if method in ONE_SHOT:
        settings = replace(mask, init=ONE_SHOT[method], schedule="constant", hardness="hard", rule="ratio")
        return Recipe(train.model_copy(update={"steps": 0, "epochs": None}), settings)
    if method == "movement":
        # From zero Adam's steps scale with the learning rate and so do the scores: their order, and so the mask, do not
        # depend on it. What is removed before scores have moved would be chance: the ratio is annealed.
        schedule = "anneal" if mask.schedule == "constant" else mask.schedule
        mask = replace(mask, rule="movement", init="zero", schedule=schedule, hardness="hard")
    return Recipe(train, mask)


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

    Args:
        method: one of `mft_ray.config.METHODS`.
        config: see `recipe`.
        model: folder or hub id of what is trained, or masked.
        data: folder of the prepared splits.
        out: folder for the result.
        scaling: what the job asks of the cluster.
        backbone: fingerprint of ``model``, where that is frozen.
        more: other fields of `TrainJob`.
    """
    how = recipe(method, config)
    return TrainJob(
        method=method,
        model=model,
        data=data,
        out=out,
        train=how.train,
        evaluation=config.evaluation,
        scaling=scaling,
        dtype=config.model.dtype,
        attention=config.model.attention,
        mask=how.mask,
        lora=how.lora,
        backbone=backbone,
        **more,
    )


def _as_fft(config: Config) -> TrainConfig:
    """Return ``train`` with all that FFT's optimizer was set to."""
    fft = config.fft.train
    optimizer = ("optimizer", "schedule", "warmup", "weight_decay", "betas", "clip", "dropout")
    changed: dict[str, Any] = {name: getattr(fft, name) for name in optimizer}
    return config.train.model_copy(update={**changed, "lr": config.fft.continued_lr or fft.lr})
