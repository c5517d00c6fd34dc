"""Why a worker group failed, in one line."""

from __future__ import annotations

import re

from mft_ray.errors import UserError

# What the other workers say when one of them is gone.
_LOST_PEER = re.compile(r"gloo|nccl|connection (reset|closed)", re.IGNORECASE)


def root_cause(*failures: BaseException) -> str:
    """Return in one line what the worker that failed first said, not those that lost it as their peer.

    Args:
        failures: of workers, or one error of Ray Train's that holds them.
    """
    held = [failure for error in failures for failure in (getattr(error, "worker_failures", None) or {}).values()]
    cause: BaseException = min(held or failures, key=lambda failure: bool(_LOST_PEER.search(str(failure))))
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    if not lines:
        return type(cause).__name__
    if _LOST_PEER.search(str(cause)):
        return f"a worker lost contact with another one, which has probably died or run out of memory ({lines[0]})"
    # What Ray says of a dead worker ends in guesses that are no news.
    text = lines[-1].partition(" Some common causes")[0].partition(" Worker exit type")[0]
    # "KeyError: 'id'" says more than "'id'"; our own messages are sentences.
    plain = hasattr(cause, "worker_failures") or isinstance(cause, UserError | ArithmeticError | RuntimeError)
    return text if plain else f"{type(cause).__name__}: {text}"
