"""Functions made one kernel: the same numbers, and themselves where nothing compiles."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mft_ray.masking import Masks, MaskSettings, keep_mask, kernels
from mft_ray.masking.kernels import Kernel
from mft_ray.masking.straight_through import straight_through

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def halved(tensor: torch.Tensor, by: float) -> torch.Tensor:
    return tensor.abs() / by


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Compile at any size, on any device, with a compiler that notes what it is given."""
    seen: list[object] = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> object:
        seen.append(graph)
        return graph.forward

    plain = torch.compile
    monkeypatch.setattr(kernels, "_DEVICES", ("cpu", "cuda"))
    monkeypatch.setattr(kernels, "_WORTH_IT", 1)
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: plain(function, dynamic=dynamic, backend=backend))
    yield seen
    torch.compiler.reset()


def test_a_function_is_compiled_once_for_all_sizes(compiles: list[object]) -> None:
    kernel, times = Kernel(halved), []
    for size in (5, 9, 12, 31):
        values = torch.arange(size) - 4.0
        assert torch.equal(kernel(values, 2.0), values.abs() / 2)
        times.append(len(compiles))
    assert times[0] == times[-1] > 0


def test_what_is_counted_is_not_compiled_and_compiles_afterwards(compiles: list[object]) -> None:
    kernel, values = Kernel(halved), torch.ones(5)
    with FlopCounterMode(display=False):
        kernel(values, 2.0)
    assert not compiles
    kernel(values, 2.0)
    assert compiles


def test_a_compiler_that_fails_is_said_once_and_costs_nothing(
    monkeypatch: pytest.MonkeyPatch, compiles: list[object], caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> torch.Tensor:
        raise RuntimeError("Failed to find C compiler.\nPlease specify one.")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken)
    kernel, values = Kernel(halved), torch.arange(5) - 4.0
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(kernel(values, 2.0), values.abs() / 2)
    assert [record.getMessage() for record in caplog.records] == [
        "halved runs uncompiled, and slower: Failed to find C compiler."
    ]


def test_memory_that_runs_out_is_no_failure_of_the_compiler(
    monkeypatch: pytest.MonkeyPatch, compiles: list[object]
) -> None:
    def full(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: full)
    with pytest.raises(torch.OutOfMemoryError):
        Kernel(halved)(torch.ones(5), 2.0)


@CUDA
@pytest.mark.parametrize("signed", [False, True])
def test_gradients_of_a_large_matrix_are_those_of_the_cpu(signed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(2048, 2304, generator=generator).cpu() for _ in range(3)]
    found = []
    for device in ("cpu", "cuda"):
        scores = drawn[0].to(device, copy=True).requires_grad_()
        weight, upstream = (each.to(device, torch.bfloat16) for each in drawn[1:])
        straight_through(scores, weight, weight, None, signed).backward(upstream)
        assert scores.grad is not None
        found.append(scores.grad.cpu())
    assert torch.equal(*found)


@CUDA
def test_large_masks_are_those_of_the_cpu_and_the_host_waits_once() -> None:
    model = torch.nn.Sequential(*[torch.nn.Linear(2304, 2048, bias=False, device="cuda") for _ in range(3)])
    masks = Masks(model, MaskSettings(ratio=0.3, init="magnitude"), cache=True)
    masks.update()  # compiles
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            masks.update()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([each for each in said if "synchronizing" in str(each.message)]) == 1
    for scores, mask in zip(masks.scores(), masks.masks().values(), strict=True):
        assert torch.equal(mask.cpu(), keep_mask(scores.detach().cpu(), 0.3))
