"""What workers need of the driver's environment, wherever they run: settings in the open, secrets not."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mft_ray.utils.proxies import keep_local
from mft_ray.workers.network import INTERFACE_VARIABLES

# Read as libraries are imported, so they must be there from a process's start: Ray's runtime_env. It writes what is in
# that into its logs.
_OPEN = (
    "HF_HOME",
    "HF_ENDPOINT",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "HF_XET_CACHE",
    "HF_HUB_OFFLINE",
    "HF_DATASETS_CACHE",
    "HF_DATASETS_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "OMP_WAIT_POLICY",
    *INTERFACE_VARIABLES,
)
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
# Read when they are used. A proxy's address may hold a password.
_SECRET = ("HF_TOKEN", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN", *_PROXIES, *(name.upper() for name in _PROXIES))


_KEEPER = "mft_ray-environment"


def worker_environment() -> dict[str, str]:
    """Return settings that workers need and that must not depend on which node they land on. None is secret."""
    settings = {
        "TOKENIZERS_PARALLELISM": "false",
        "DS_IGNORE_CUDA_DETECTION": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        # A worker's threads otherwise spin while they wait for each other: where another job has one of their cores, a
        # step takes ten times as long.
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    return {**settings, **_there(_OPEN)}


def secrets() -> dict[str, str]:
    """Return what else of this process's environment workers need, and no log may show."""
    return _there(_SECRET)


def take(given: Mapping[str, str]) -> None:
    """Add a driver's `secrets` to this process's environment.

    Args:
        given: by name.
    """
    os.environ.update(given)
    keep_local()


def with_secrets(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that has this process's `secrets` in its environment, wherever it runs.

    Args:
        function: picklable; it may be a generator.
    """
    given = secrets()

    @wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        take(given)
        return function(*arguments, **named)

    @wraps(function)
    def generate(*arguments: Any, **named: Any) -> Any:
        take(given)
        yield from function(*arguments, **named)

    return generate if inspect.isgeneratorfunction(function) else call  # Ray streams what a generator yields


class _Keeper:
    """The driver's settings and secrets, for processes that the driver does not start itself."""

    def __init__(self) -> None:
        self._kept: dict[str, str] = {}

    def keep(self, given: Mapping[str, str]) -> None:
        self._kept = dict(given)

    def kept(self) -> dict[str, str]:
        return self._kept


def share() -> Any:
    """Let this job's processes on a cluster `inherit` what workers need of this one's environment.

    Returns:
        The actor that keeps it, which lives as long as somebody holds this.
    """
    # By a call, which Ray logs nowhere, and not by the creation, which the cluster's state shows.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    keeper = ray.remote(num_cpus=0, scheduling_strategy=here)(_Keeper).options(name=_KEEPER).remote()
    ray.get(keeper.keep.remote(_there((*_OPEN, *_SECRET))))
    return keeper


def inherit() -> None:
    """Take what the driver shares into this process's environment, which has its node's; nothing if it shares none."""
    try:
        keeper = ray.get_actor(_KEEPER)
    except ValueError:
        return  # a private Ray's processes have the driver's environment
    take(ray.get(keeper.kept.remote()))


def _there(names: tuple[str, ...]) -> dict[str, str]:
    return {name: os.environ[name] for name in names if name in os.environ}
