"""What each method makes of one configuration."""

from __future__ import annotations

from typing import Any

import pytest

from mft_ray.config import METHODS, Config, ScalingConfig, TrainConfig, parse_config
from mft_ray.masking import MaskSettings
from mft_ray.training.method_jobs import train_job

ONE_SHOT = ("random_mask", "l1_mask", "wanda_mask")

LEARNED = MaskSettings(ratio=0.3, layers="1", init="magnitude", schedule="linear", hardness="soft")


@pytest.fixture
def config(tiny: dict[str, Any]) -> Config:
    tree = {
        **tiny,
        "fft": {"train": {"steps": 500, "batch_size": 8, "lr": 1e-4, "weight_decay": 0.3, "dropout": 0.1, "seed": 7}},
        "train": {"steps": 100, "batch_size": 4, "lr": 1e-3, "eval_every": 10, "seed": 5},
    }
    return parse_config(tree).model_copy(update={"mask": LEARNED})


def test_every_method_trains_one_thing(config: Config) -> None:
    for method in METHODS:
        how = METHODS[method].recipe(config)
        assert (how.mask is not None) == METHODS[method].masks
        assert (how.lora is not None) == (method == "lora")


def test_all_but_fft_have_the_budget_and_the_batches_of_a_mask(config: Config) -> None:
    def budget(train: TrainConfig) -> tuple[int, int, int, int]:
        return train.steps, train.batch_size, train.seed, train.eval_every

    assert METHODS["fft"].recipe(config).train == config.fft.train
    for method in METHODS.keys() - {"fft", *ONE_SHOT}:
        assert budget(METHODS[method].recipe(config).train) == (100, 4, 5, 10)


def test_continued_fft_keeps_ffts_optimizer(config: Config) -> None:
    train = METHODS["continued_fft"].recipe(config).train
    assert (train.lr, train.weight_decay, train.dropout) == (1e-4, 0.3, 0.1)
    slower = config.model_copy(update={"fft": config.fft.model_copy(update={"continued_lr": 1e-5})})
    assert METHODS["continued_fft"].recipe(slower).train.lr == 1e-5


def test_lora_has_a_learning_rate_of_its_own(config: Config) -> None:
    assert METHODS["lora"].recipe(config).train.lr == config.lora.lr == 2e-4
    same = config.model_copy(update={"lora": config.lora.model_copy(update={"lr": None})})
    assert METHODS["lora"].recipe(same).train.lr == 1e-3
    # arXiv 2503.22764: rank 64, alpha 16, all seven projections.
    assert (config.lora.rank, config.lora.alpha, config.lora.target, config.lora.layers) == (64, 16, "both", "all")


@pytest.mark.parametrize("method", ONE_SHOT)
def test_a_one_shot_mask_is_where_and_as_large_as_the_learned_one(method: str, config: Config) -> None:
    how = METHODS[method].recipe(config)
    assert how.mask is not None
    assert (how.mask.ratio, how.mask.layers, how.mask.target) == (0.3, "1", "both")
    assert (how.mask.schedule, how.mask.hardness) == ("constant", "hard")
    assert (how.train.steps, how.train.lr) == (0, 1e-3)


def test_movement_starts_at_zero_and_is_annealed(config: Config) -> None:
    mask = METHODS["movement"].recipe(config).mask
    assert mask is not None
    assert (mask.rule, mask.init, mask.hardness, mask.schedule) == ("movement", "zero", "hard", "linear")
    constant = config.model_copy(update={"mask": MaskSettings()})
    annealed = METHODS["movement"].recipe(constant).mask
    assert annealed is not None
    assert annealed.schedule == "anneal"


def test_a_job_is_of_its_method(config: Config) -> None:
    job = train_job("lora", config, model="m", data="d", out="o", scaling=ScalingConfig())
    assert (job.method, job.frozen, job.mask, job.lora) == ("lora", True, None, config.lora)


@pytest.mark.parametrize("method", ONE_SHOT)
def test_what_is_cut_once_has_no_epochs(method: str, config: Config) -> None:
    epochs = config.model_copy(update={"train": TrainConfig(epochs=2)})
    assert METHODS[method].recipe(epochs).train.in_steps(100).steps == 0
