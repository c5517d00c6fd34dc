"""One Ray for all tests that need one, and a tiny arithmetic search to run on it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mft_ray.config import Config, parse_config

pytest_plugins = ["job_fixtures", "search_fixtures", "report_fixtures"]


def pytest_configure() -> None:
    """Undo what a script does to its background jobs: what tests start would ignore Ctrl-C too."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A private Ray of two CPUs, shared by the session's tests."""
    from mft_ray.workers.connection import connected

    with connected(num_cpus=2):
        yield


def tiny_tree() -> dict[str, Any]:
    """Settings of a whole search that takes seconds of computation."""
    llama = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    return {
        "run": {"name": "tiny"},
        "model": {"architecture": {**llama, "num_attention_heads": 4, "max_position_embeddings": 32}},
        "data": {"task": "arithmetic", "digits": 1, "n_train": 60, "n_validation": 40, "n_test": 50},
        "evaluation": {"metric": "exact_match", "resamples": 500},
        "fft": {"train": {"steps": 40, "batch_size": 16, "lr": 3e-3, "eval_every": 20, "patience": 2}},
        "train": {"steps": 30, "batch_size": 16, "eval_every": 10, "lr": 3e-3},
        "search": {"trials": 2},
    }


@pytest.fixture(scope="session")
def make_tiny() -> Callable[[], dict[str, Any]]:
    """Make a fresh copy of `tiny_tree`, for fixtures that live longer than a test."""
    return tiny_tree


@pytest.fixture
def tiny() -> dict[str, Any]:
    """A fresh copy of `tiny_tree`, to change and parse."""
    return tiny_tree()


@pytest.fixture
def tiny_config(tiny: dict[str, Any]) -> Config:
    """`tiny_tree`, parsed."""
    return parse_config(tiny)
