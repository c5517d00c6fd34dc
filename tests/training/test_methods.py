"""Masks that are not learned: cut once, by the same workers that learn the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from ground import Ground, scaling

from mft_ray.config import TrainConfig
from mft_ray.masking import MaskFile, MaskSettings, keep_mask, load_mask
from mft_ray.training.backbone import load_model
from mft_ray.training.group import workers
from mft_ray.training.job import Outcome, TrainJob
from mft_ray.training.methods import METHODS, ONE_SHOT, cut_once

Make = Callable[..., TrainJob]
LEARNED = MaskSettings(ratio=0.3, layers="1", init="magnitude", schedule="anneal", hardness="soft")


@pytest.mark.parametrize("method", ONE_SHOT)
def test_where_and_how_much_is_as_of_the_learned_mask(method: str) -> None:
    settings, train = cut_once(method, LEARNED, TrainConfig(epochs=2, lr=1e-3))
    assert (settings.ratio, settings.layers, settings.target) == (0.3, "1", "both")
    assert (settings.schedule, settings.hardness) == ("constant", "hard")
    assert (train.in_steps(100).steps, train.lr) == (0, 1e-3)
    assert method in METHODS


@pytest.mark.slow
def test_one_shot_masks_are_what_their_names_say(mft_job: Make, ground: Ground, tmp_path: Path) -> None:
    masks: dict[str, MaskFile] = {}
    with workers(scaling(), tmp_path / "group") as group:
        for method in ONE_SHOT:
            job = mft_job(method, scaling())
            mask, train = cut_once(method, LEARNED, job.train)
            outcome = group.train(dataclasses.replace(job, mask=mask, train=train))
            assert isinstance(outcome, Outcome)
            assert (outcome.stopped_reason, len(outcome.history), outcome.best) == ("completed", 1, 0)
            assert (outcome.history[0].step, outcome.history[0].tokens) == (0, 0)
            masks[method] = load_mask(Path(job.out) / "mask.safetensors")
    model = load_model(ground.backbone)
    for name, mask in masks["l1_mask"].masks.items():
        assert "layers.1." in name
        assert mask.equal(keep_mask(model.get_parameter(name), 0.3))
        others = [masks[method].masks[name] for method in ("random_mask", "wanda_mask")]
        assert all(int(mask.sum()) == int(other.sum()) and not mask.equal(other) for other in others)
    # A random cut agrees with any other by chance alone.
    agree = [(mask == masks["random_mask"].masks[name]).float().mean() for name, mask in masks["l1_mask"].masks.items()]
    assert sum(agree) / len(agree) == pytest.approx(0.3**2 + 0.7**2, abs=0.05)
