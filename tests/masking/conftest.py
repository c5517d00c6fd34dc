"""One tiny model after the other."""

from __future__ import annotations

import pytest
from tiny_models import Make, gpt2, llama, sequential


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
