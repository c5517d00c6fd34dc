"""Masks on the FFT model: cut once by scores that are not trained, pruned by movement, or learned (MFT)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mft_ray.config import Config
from mft_ray.config.methods import MethodSpec, Recipe, register
from mft_ray.masking import Init

_SECTIONS = ("mask", "train")
_SEARCHED = {name: f"mask.{name}" for name in ("ratio", "layers", "target")}
_OF_MFT = {"lr": "train.lr", "init": "mask.init", "schedule": "mask.schedule"}


def _one_shot(init: Init) -> Callable[[Config], Recipe]:
    """Return the recipe of a mask that is cut once: what a learned one has to beat."""

    def recipe(config: Config) -> Recipe:
        settings = replace(config.mask, init=init, schedule="constant", hardness="hard", rule="ratio")
        return Recipe(config.train.model_copy(update={"steps": 0, "epochs": None}), settings)

    return recipe


def _movement(config: Config) -> Recipe:
    # From zero Adam's steps scale with the learning rate and so do the scores: their order, and so the mask, do not
    # depend on it. What is removed before scores have moved would be chance: the ratio is annealed.
    schedule = "anneal" if config.mask.schedule == "constant" else config.mask.schedule
    mask = replace(config.mask, rule="movement", init="zero", schedule=schedule, hardness="hard")
    return Recipe(config.train, mask)


for _name, _init, _removed in (
    ("random_mask", "normal", "random weights are removed"),
    ("l1_mask", "magnitude", "the smallest |W| are removed"),
    ("wanda_mask", "wanda", "the smallest |W| times the norm of their input are removed (arXiv 2306.11695)"),
):
    register(MethodSpec(_name, _removed, "mask", _one_shot(_init), _SECTIONS, _SEARCHED))  # type: ignore[arg-type]
MOVEMENT = register(
    MethodSpec(
        name="movement",
        description="movement pruning of the frozen model: signed scores from zero, annealed (arXiv 2005.07683)",
        makes="mask",
        recipe=_movement,
        sections=_SECTIONS,
        short_names=_SEARCHED,
    )
)
MFT = register(
    MethodSpec(
        name="mft",
        description="Mask Fine-Tuning (arXiv 2503.22764)",
        makes="mask",
        recipe=lambda config: Recipe(config.train, config.mask),
        sections=_SECTIONS,
        short_names={**_SEARCHED, **_OF_MFT},
    )
)
