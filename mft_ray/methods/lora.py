"""LoRA on the FFT model (arXiv 2106.09685)."""

from __future__ import annotations

from mft_ray.config import Config
from mft_ray.config.methods import MethodSpec, Recipe, register
from mft_ray.config.params import Params


def _lr(config: Config) -> float:
    return config.lora.lr or config.train.lr


def _recipe(config: Config) -> Recipe:
    return Recipe(config.train.model_copy(update={"lr": _lr(config)}), lora=config.lora)


def _preset(config: Config, depth: int) -> Params:
    return {"rank": config.lora.rank, "layers": f"0-{depth - 1}", "target": "both", "lr": _lr(config)}


LORA = register(
    MethodSpec(
        name="lora",
        description="LoRA on the FFT model (arXiv 2106.09685)",
        makes="adapter",
        recipe=_recipe,
        sections=("lora", "train"),
        short_names={"rank": "lora.rank", "layers": "lora.layers", "target": "lora.target", "lr": "lora.lr"},
        preset=_preset,
    )
)
