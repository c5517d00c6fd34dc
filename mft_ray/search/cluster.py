"""A Ray to run on: the one that this process was started on, or one of its own."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import ray


@contextmanager
def connected(num_cpus: int | None = None) -> Iterator[None]:
    """Connect to the Ray that ``RAY_ADDRESS`` or a job names, else start a private one and stop it again.

    Args:
        num_cpus: of a private one; None counts this machine's.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with ExitStack() as stack:
        if os.environ.get("RAY_ADDRESS"):
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        else:
            _start(stack.enter_context(TemporaryDirectory(prefix="mft-ray-", ignore_cleanup_errors=True)), num_cpus)
            stack.callback(os.environ.pop, "RAY_TMPDIR", None)
        stack.callback(ray.shutdown)
        # A stopped job gets SIGTERM: the same as Ctrl-C, once Ray's own handler is out of the way.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        yield


def _start(temporary: str, num_cpus: int | None) -> None:
    # All processes of this Ray inherit where they find its address. Elsewhere there may be one of a Ray that is
    # gone, and Ray Train, which asks the State API, then takes 12 seconds to end a worker group.
    os.environ["RAY_TMPDIR"] = temporary
    # With the dashboard off, placement groups of stopped trials leak: their cleaner asks the State API.
    context = ray.init(
        address="local", num_cpus=num_cpus, include_dashboard=True, log_to_driver=False, logging_level=logging.ERROR
    )
    (Path(temporary) / "ray" / "ray_current_cluster").write_text(context.address_info["gcs_address"])
