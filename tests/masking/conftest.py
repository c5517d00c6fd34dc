"""One tiny model after the other; on a GPU where ``MFT_RAY_TEST_DEVICE=cuda`` asks for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

DEVICE = os.environ.get("MFT_RAY_TEST_DEVICE", "cpu")


class DrawnOnCpu(TorchFunctionMode):
    """Mode in which what a CPU generator draws is drawn on the CPU and moved to the default device."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        generator = kwargs.get("generator")
        creates = kwargs.get("device") is None and not (args and isinstance(args[0], torch.Tensor))
        if generator is not None and generator.device.type == "cpu" and creates:
            return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        return func(*args, **kwargs)


if DEVICE != "cpu":
    torch.set_default_device(DEVICE)
    DrawnOnCpu().__enter__()  # for the whole process

# Only now: the test modules, and this one, draw constants when they are imported.
from tiny_models import Make, gpt2, llama, sequential  # noqa: E402


@pytest.fixture(params=[llama, gpt2, sequential], ids=lambda make: make.__name__)
def make(request: pytest.FixtureRequest) -> Make:
    """One maker of a model after the other; two calls give equal models."""
    chosen: Make = request.param
    return chosen


@pytest.fixture(params=[llama, gpt2], ids=lambda make: make.__name__)
def make_lm(request: pytest.FixtureRequest) -> Make:
    """As `make`, only models of transformers."""
    chosen: Make = request.param
    return chosen
