"""One Ray for all tests that need one, and a tiny arithmetic search to run on it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mft_ray.config import Config, parse_config

pytest_plugins = ["job_fixtures", "search_fixtures", "report_fixtures"]

# Before anything loads torch. Threads of OpenMP spin while they wait for each other: where another job has a core, a
# step of a tiny model on two of them takes twenty times as long as on one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How slow tests may be marked beside, and their place with --within. Those that are not slow come first of all.
_PLACES = {"core": 1, "nightly": 3, "slow": 2}
NOT_RUN = pytest.StashKey[list[str]]()
BEGAN = time.monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --within: where a machine is slow and time is short, what matters most is still run, and it ends in order."""
    parser.addoption(
        "--within",
        metavar="MINUTES",
        type=float,
        help="begin no slow test after so many minutes; those that were not run are counted and named at the end",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Undo what a script does to its background jobs: what tests start would ignore Ctrl-C too."""
    config.stash[NOT_RUN] = []
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With --within, have files that have slow tests come last, the core among them first, the nightly last."""
    if config.getoption("within") is None:
        return
    place: dict[object, int] = {}
    for item in items:
        weight = next((number for name, number in _PLACES.items() if item.get_closest_marker(name)), 0)
        earlier = place.get(item.path, 0)
        place[item.path] = min(filter(None, (earlier, weight)), default=0)
    items.sort(key=lambda item: place[item.path])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out a slow test for which no time is left."""
    within = item.config.getoption("within")
    limit = item.get_closest_marker("timeout") if item.get_closest_marker("nightly") else None
    late = within is not None and time.monotonic() - BEGAN + (limit.args[0] if limit else 0) > within * 60
    if late and item.get_closest_marker("slow") and not item.get_closest_marker("core"):
        item.config.stash[NOT_RUN].append(item.nodeid)
        pytest.skip(f"not run: the {within:g} minutes of --within were over")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Name what was not run for want of time."""
    if names := config.stash[NOT_RUN]:
        terminalreporter.section(f"{len(names)} slow tests were NOT RUN: the time of --within was over")
        for name in names:
            terminalreporter.write_line(name)


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
