from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mft_ray.config import TrainConfig
from mft_ray.training.engine import _on_disk, gathered, gathered_state, lr_factor

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


def test_whole_parameters_need_no_gathering(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    with gathered([model.weight]):
        assert model.weight.shape == (2, 3)
    state = gathered_state(model, torch.bfloat16, tmp_path)
    assert {name: value.dtype for name, value in state.items()} == dict.fromkeys(["weight", "bias"], torch.bfloat16)
    torch.testing.assert_close(state["weight"].float(), model.weight.detach(), atol=1e-2, rtol=1e-2)
    state["weight"].zero_()
    assert model.weight.abs().sum() > 0
    assert gathered_state(model, torch.float32, tmp_path)["weight"].data_ptr() == model.weight.data_ptr()
    assert not list(tmp_path.iterdir())


def test_a_copy_takes_no_memory_of_its_own(tmp_path: Path) -> None:
    model = nn.Linear(4096, 4096)
    before = _own_memory()
    state = gathered_state(model, torch.bfloat16, tmp_path)
    assert _own_memory() - before < 0.1 * state["weight"].nbytes
    assert len({each.untyped_storage().data_ptr() for each in state.values()}) == len(state)  # none is taken for tied
    torch.testing.assert_close(state["bias"], model.bias.detach().bfloat16())


def test_a_full_disk_is_said_and_kills_nobody() -> None:
    with pytest.raises(OSError, match=r"No space left on device|File too large"):
        _on_disk({"weight": torch.Size([2**55])}, torch.bfloat16, Path(tempfile.gettempdir()))


def _own_memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
