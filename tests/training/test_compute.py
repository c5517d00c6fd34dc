"""``scaling.compute: auto``: bfloat16 where it pays, alike on all workers, and said."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from mft_ray.config import ScalingConfig
from mft_ray.training import compute as module
from mft_ray.training.compute import autocast_dtype, multiplies_bfloat16, settled

CPU = torch.device("cpu")


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A group of one worker."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("given", ["float32", "bfloat16"])
def test_what_is_given_is_taken(given: str) -> None:
    scaling = ScalingConfig.model_validate({"compute": given})
    assert settled(scaling, CPU) == (scaling, "")
    assert autocast_dtype(scaling) == (torch.bfloat16 if given == "bfloat16" else None)


@pytest.mark.parametrize(
    ("can", "dtype", "says"),
    [
        ({"amx_bf16": True, "cpu_name": "Xeon"}, "bfloat16", "computes in bfloat16: Xeon multiplies bfloat16"),
        ({"avx512_bf16": True, "amx_bf16": False}, "bfloat16", "multiplies bfloat16"),
        ({"avx512_f": True, "avx512_bf16": False, "cpu_name": "old"}, "float32", "computes in float32: old does not"),
        ({}, "float32", "does not"),
    ],
)
def test_auto_goes_by_the_processor(
    can: dict[str, bool | str], dtype: str, says: str, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can)
    scaling, told = settled(ScalingConfig(workers=1, compute="auto"), CPU)
    assert scaling.compute == dtype
    assert says in told


def test_auto_is_what_all_workers_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another worker of the group has an older processor."""
    monkeypatch.setattr(module, "multiplies_bfloat16", lambda device: True)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, op: tensor.zero_())
    scaling, told = settled(ScalingConfig(workers=2, compute="auto"), CPU)
    assert scaling.compute == "float32"
    assert "not multiply bfloat16 on every worker" in told


def test_this_processor_is_looked_at() -> None:
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    if flags:  # x86
        assert multiplies_bfloat16(CPU) == bool({"amx_bf16", "avx512_bf16"} & set(flags.split()))
