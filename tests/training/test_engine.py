from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mft_ray.config import TrainConfig
from mft_ray.training.engine import gathered, gathered_state, lr_factor

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


def test_whole_parameters_need_no_gathering() -> None:
    model = nn.Linear(3, 2)
    with gathered([model.weight]):
        assert model.weight.shape == (2, 3)
    state = gathered_state(model, torch.bfloat16)
    assert {name: value.dtype for name, value in state.items()} == dict.fromkeys(["weight", "bias"], torch.bfloat16)
    torch.testing.assert_close(state["weight"].float(), model.weight.detach(), atol=1e-2, rtol=1e-2)
    state["weight"].zero_()
    assert model.weight.abs().sum() > 0
