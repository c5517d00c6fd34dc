from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

from mft_ray.training.engine import _on_disk, gathered, gathered_state


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
