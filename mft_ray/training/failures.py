"""Why a worker group failed, in one line, and whether that was for want of memory."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mft_ray.errors import UserError
from mft_ray.training.network import NotConnected

# What the other workers say when one of them is gone.
_LOST_PEER = re.compile(r"gloo|nccl|connection (reset|closed)", re.IGNORECASE)
# Ray's own words where it has killed a worker.
_KILLED = re.compile(r"running low on memory|NODE_OUT_OF_MEMORY")
# torch's for a GPU and for a CPU, CUDA's libraries', C's and C++'s.
_NO_MEMORY = re.compile(
    r"out of memory|can(no|')t allocate memory|not enough memory|ALLOC_FAILED|bad_alloc", re.IGNORECASE
)
_SIZE = r"([\d.]+ ?[KMGT]?i?B)"


def out_of_memory(*failures: BaseException) -> bool:
    """Say whether a worker asked for memory that was not there, or was killed for what it held.

    Args:
        failures: as of `root_cause`.
    """
    return any(_of_memory(failure) for failure in _each(failures))


def root_cause(*failures: BaseException) -> str:
    """Return in one line what the worker that failed first said, not those that lost it as their peer.

    Args:
        failures: of workers, or one error of Ray Train's that holds them.
    """
    each = _each(failures)
    cause = min(each, key=lambda failure: (not _of_memory(failure), bool(_LOST_PEER.search(str(failure)))))
    if isinstance(cause, NotConnected):
        return str(cause)
    if _KILLED.search(_text(cause)):
        return _killed(_text(cause))
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    if not lines:
        return type(cause).__name__
    if _LOST_PEER.search(str(cause)) and not _of_memory(cause):
        return f"a worker lost contact with another one, which has probably died or run out of memory ({lines[0]})"
    # What Ray says of a dead worker ends in guesses that are no news.
    text = lines[-1].partition(" Some common causes")[0].partition(" Worker exit type")[0]
    # "KeyError: 'id'" says more than "'id'"; our own messages are sentences.
    plain = hasattr(cause, "worker_failures") or isinstance(cause, UserError | ArithmeticError | RuntimeError)
    return text if plain else f"{type(cause).__name__}: {text}"


def _each(failures: Sequence[BaseException]) -> list[BaseException]:
    held = [failure for error in failures for failure in (getattr(error, "worker_failures", None) or {}).values()]
    return held or [getattr(error, "controller_failure", error) for error in failures]


def _text(failure: BaseException) -> str:
    """Return what a failure says and, where a worker did not answer, what Ray says of that, but no guesses."""
    return "\n".join(
        str(each).partition(" Some common causes")[0]
        for each in (failure, getattr(failure, "health_check_failure", None) or "")
    )


def _of_memory(failure: BaseException) -> bool:
    text = _text(failure)
    return isinstance(failure, MemoryError) or bool(_KILLED.search(text) or _NO_MEMORY.search(text))


def _killed(text: str) -> str:
    """Return what matters of the pages that Ray writes when it kills processes for memory."""
    facts, who = [], "a process of the worker group"  # of Ray Train's own helpers too
    if worker := re.search(r"ActorMetadata\([^)]*\bpid=(\d+)", text):
        who = "a worker"
        if held := re.search(rf"\bpid={worker[1]}, actual memory used={_SIZE}", text):
            facts.append(f"it held {held[1]}")
    if node := re.search(rf"was {_SIZE} used / {_SIZE} limit", text):
        facts.append(f"{node[1]} of the node's {node[2]} were in use")
    return f"{who} was killed because its node ran low on memory" + (f" ({', '.join(facts)})" if facts else "")
