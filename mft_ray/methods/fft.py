"""Full fine-tuning, from the model before it, and continued from the FFT model."""

from __future__ import annotations

from mft_ray.config import Config, TrainConfig
from mft_ray.config.methods import MethodSpec, Recipe, register
from mft_ray.config.params import Params

_SEARCHED = {"weight_decay": "fft.train.weight_decay", "dropout": "fft.train.dropout"}


def _continued(config: Config) -> TrainConfig:
    """Return ``train`` with all that FFT's optimizer was set to."""
    fft = config.fft.train
    optimizer = ("optimizer", "dtype", "schedule", "warmup", "weight_decay", "betas", "clip", "dropout")
    changed = {name: getattr(fft, name) for name in optimizer}
    return config.train.model_copy(update={**changed, "lr": config.fft.continued_lr or fft.lr})


def _preset(config: Config, lr: float) -> Params:
    return {"lr": lr, "weight_decay": config.fft.train.weight_decay, "dropout": config.fft.train.dropout}


FFT = register(
    MethodSpec(
        name="fft",
        description="every weight is trained, from the model before fine-tuning",
        makes="tuned model",
        recipe=lambda config: Recipe(config.fft.train),
        sections=("fft.train",),
        short_names={"lr": "fft.train.lr", **_SEARCHED},
        preset=lambda config, depth: _preset(config, config.fft.train.lr),
    )
)
CONTINUED = register(
    MethodSpec(
        name="continued_fft",
        description="FFT goes on for as many tokens as the others get",
        makes="tuned model",
        recipe=lambda config: Recipe(_continued(config)),
        sections=("fft.train", "train"),
        short_names={"lr": "fft.continued_lr", **_SEARCHED},
        preset=lambda config, depth: _preset(config, config.fft.continued_lr or config.fft.train.lr),
    )
)
