"""Lines that a person reads while something long goes on."""

from __future__ import annotations

import time


def log(text: str) -> None:
    """Print one line of progress, with the time, at once."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)
