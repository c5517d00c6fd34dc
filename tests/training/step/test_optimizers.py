"""Optimizers against plain AdamW, and what bfloat16 does to what they change."""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mft_ray.config import ScalingConfig, TrainConfig, parse_config
from mft_ray.errors import UserError
from mft_ray.training.step import optimizers
from mft_ray.training.step.optimizers import (
    build_optimizer,
    check_installed,
    check_stage,
    lr_factor,
    state_bytes,
    stochastically_rounded,
)

SCHEDULES = ["linear", "cosine", "constant"]


@settings(deadline=None)
@given(
    schedule=st.sampled_from(SCHEDULES),
    steps=st.integers(1, 300),
    warmup=st.floats(0, 0.99),
)
def test_the_learning_rate_rises_then_falls(schedule: str, steps: int, warmup: float) -> None:
    train = TrainConfig(schedule=schedule, steps=steps, warmup=warmup)
    factors = [lr_factor(train, step) for step in range(steps)]
    peak = factors.index(max(factors))
    assert 0 < min(factors) <= max(factors) <= 1  # no step is wasted on a rate of 0
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


def test_warmup_is_linear_and_reaches_the_full_rate() -> None:
    train = TrainConfig(steps=100, warmup=0.04, schedule="constant")
    assert [lr_factor(train, step) for step in (0, 1, 2, 3, 4, 99)] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_a_bit_of_warmup_is_a_whole_step() -> None:
    assert lr_factor(TrainConfig(steps=10, warmup=0.01), 0) == 1
    assert lr_factor(TrainConfig(steps=10, warmup=0.11), 0) == 0.5


@pytest.mark.parametrize(("schedule", "middle"), [("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)])
def test_decay(schedule: str, middle: float) -> None:
    train = TrainConfig(steps=20, warmup=0, schedule=schedule)
    assert lr_factor(train, 0) == 1
    assert lr_factor(train, 10) == pytest.approx(middle)
    # The scheduler asks once more after the last step.
    assert lr_factor(train, 20) == pytest.approx(1 if schedule == "constant" else 0)
    assert 0 <= lr_factor(train, 25) <= 1


EIGHT_BITS = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: make .venv/more"
)
LIGHT = TrainConfig(optimizer="adamw_8bit", dtype="bfloat16", lr=1e-2)


def problem(train: TrainConfig) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    parameter = nn.Parameter(torch.full((128, 256), 1.0, dtype=getattr(torch, train.dtype)))
    return parameter, build_optimizer([parameter], train)


def steps(parameter: nn.Parameter, optimizer: torch.optim.Optimizer, count: int, first: int = 0) -> None:
    for step in range(first, first + count):
        gradient = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step)) + 0.5
        parameter.grad = gradient.to(parameter.dtype)
        optimizer.step()


@EIGHT_BITS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_eight_bits_are_enough_to_follow_adamw(dtype: Any) -> None:
    plain, optimizer = problem(TrainConfig(lr=1e-2))
    steps(plain, optimizer, 50)
    light, optimizer = problem(LIGHT.model_copy(update={"dtype": dtype}))
    steps(light, optimizer, 50)
    moved = (plain - 1).norm()
    assert moved > 10
    assert (light.float() - plain).norm() < (0.05 if dtype == "float32" else 0.1) * moved


@EIGHT_BITS
def test_a_small_change_is_not_lost_on_average() -> None:
    """A hundredth of what lies between 1 and the next bfloat16, in each of a hundred steps."""
    moved = []
    for dtype in ("float32", "bfloat16"):
        parameter, optimizer = problem(LIGHT.model_copy(update={"lr": 2**-7 / 100, "dtype": dtype}))
        for _ in range(100):
            parameter.grad = -torch.ones_like(parameter)
            optimizer.step()
        moved.append(float(parameter.detach().float().mean()) - 1)
    assert moved[0] == pytest.approx(2**-7, rel=0.1)
    assert moved[1] == pytest.approx(moved[0], rel=0.03)


@settings(deadline=None)
@given(value=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False))
def test_a_number_is_rounded_to_one_of_its_neighbours(value: float) -> None:
    many = torch.full((4096,), value)
    rounded = stochastically_rounded(many, torch.Generator().manual_seed(0))
    assert rounded.dtype == torch.bfloat16
    below = many.view(torch.int32) & -(2**16)
    for neighbour in rounded.float().unique().view(torch.int32):
        assert int(neighbour - below[0]) in (0, 2**16)
    kept = many.to(torch.bfloat16).float()
    if torch.equal(kept, many):
        assert torch.equal(rounded.float(), many)  # what needs no rounding stays


@EIGHT_BITS
def test_a_run_that_goes_on_is_the_run_itself() -> None:
    whole, optimizer = problem(LIGHT)
    steps(whole, optimizer, 8)
    first, optimizer = problem(LIGHT)
    steps(first, optimizer, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    second, optimizer = problem(LIGHT)
    second.data.copy_(first.data)
    optimizer.load_state_dict(saved)
    steps(second, optimizer, 5, first=3)
    assert torch.equal(second, whole)


@pytest.mark.parametrize(
    "train", [TrainConfig(), TrainConfig(optimizer="rmsprop"), pytest.param(LIGHT, marks=EIGHT_BITS)]
)
def test_states_take_what_is_counted(train: TrainConfig) -> None:
    parameter, optimizer = problem(train)
    steps(parameter, optimizer, 1)
    held = sum(
        value.nbytes for value in optimizer.state[parameter].values() if torch.is_tensor(value) and value.numel() > 1
    )
    codes = 2 * 256 * 4 if train.optimizer == "adamw_8bit" else 0  # what each code stands for, once for all
    assert held - codes == pytest.approx(state_bytes(train) * parameter.numel())


def test_what_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_stage(LIGHT, ScalingConfig())
    with pytest.raises(UserError, match="zero_stage 2, at which DeepSpeed keeps an fp32 copy"):
        check_stage(LIGHT, ScalingConfig(zero_stage=2))
    monkeypatch.setattr(optimizers.importlib.util, "find_spec", lambda name: None)
    check_installed(TrainConfig())
    with pytest.raises(UserError, match="needs bitsandbytes, which is not installed here"):
        check_installed(LIGHT)
    with pytest.raises(UserError, match="dtype is bfloat16 and optimizer adamw, whose small changes"):
        parse_config({"model": {"path": "x"}, "train": {"dtype": "bfloat16"}})
