"""A Ray to run on: the one that this process was started on, or one of its own."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray


@contextmanager
def connected() -> Iterator[None]:
    """Connect to the Ray that ``RAY_ADDRESS`` or a job names, else start a private one and stop it again."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # With the dashboard off, placement groups of stopped trials leak: their cleaner asks the State API.
    # "local" never takes up a stale address file of a Ray that is gone.
    named = os.environ.get("RAY_ADDRESS")
    settings = {} if named else {"address": "local", "include_dashboard": True}
    ray.init(log_to_driver=False, logging_level=logging.ERROR, **settings)
    # A stopped job gets SIGTERM: the same as Ctrl-C, once Ray's own handler is out of the way.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        ray.shutdown()
