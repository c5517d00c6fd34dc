"""Why a worker group failed, in one line, and whether that was for want of memory."""

from __future__ import annotations

import re
import traceback
from collections.abc import Sequence
from contextlib import suppress

from mft_ray.errors import UserError
from mft_ray.workers.network import NotConnected

# What the other workers say when one of them is gone.
_LOST_PEER = re.compile(r"gloo|nccl|connection (reset|closed)", re.IGNORECASE)
# Ray's own words where it has killed a worker.
_KILLED = re.compile(r"running low on memory|NODE_OUT_OF_MEMORY")
# Its words where a worker does not answer: it cannot be reached, it has died, or it hangs; and where it was.
_UNREACHED, _DEAD, _SILENT = (
    re.compile(r"The actor \S+ is unavailable"),
    re.compile(r"The actor (?:is dead|died) because (?P<why>[^.\n]+)"),
    re.compile(r"health check has been hanging for (?P<seconds>\d+)"),
)
_ADDRESS = re.compile(r"node_ip='(?P<of_a_worker>[^']+)'|ipv4:(?P<asked>[\d.]+):\d+")
# torch's for a GPU and for a CPU, CUDA's libraries', C's and C++'s.
_NO_MEMORY = re.compile(
    r"out of memory|can(no|')t allocate memory|not enough memory|ALLOC_FAILED|bad_alloc", re.IGNORECASE
)
_SIZE = r"([\d.]+ ?[KMGT]?i?B)"


def out_of_memory(*failures: BaseException) -> bool:
    """Say whether a worker asked for memory that was not there, or was killed for what it held.

    Args:
        failures: same as in `root_cause`.
    """
    return any(_of_memory(failure) for failure in _each(failures))


def note_traceback(error: BaseException) -> None:
    """Have an error take its traceback along, in words: what reaches another process has only that process's.

    Args:
        error: raised by code on a worker. What the user gave needs no traceback.
    """
    if not isinstance(error, UserError):
        with suppress(AttributeError):  # a class that has slots
            error.worker_traceback = "".join(traceback.format_exception(error))  # type: ignore[attr-defined]


def traceback_of(*failures: BaseException) -> str | None:
    """Return what `note_traceback` has noted of the failure that `root_cause` tells; None of a worker that was lost.

    Args:
        failures: same as in `root_cause`.
    """
    cause = _cause(failures)
    lost = _LOST_PEER.search(str(cause)) and not _of_memory(cause)
    return None if lost else getattr(cause, "worker_traceback", None)


def raised(*failures: BaseException) -> bool:
    """Say whether code raised what `root_cause` tells, and so might again: no worker was lost, nor short of memory.

    Args:
        failures: same as in `root_cause`.
    """
    cause = _cause(failures)
    by_code = hasattr(cause, "worker_traceback") or isinstance(cause, UserError)
    return by_code and not _of_memory(cause) and not _LOST_PEER.search(str(cause))


def root_cause(*failures: BaseException) -> str:
    """Return in one line what the worker that failed first said, not those that lost it as their peer.

    Args:
        failures: failures of workers, or one error of Ray Train's that holds them.
    """
    cause = _cause(failures)
    if isinstance(cause, NotConnected):
        return str(cause)
    if _KILLED.search(_text(cause)):
        return _killed(_text(cause))
    if gone := _gone(cause):
        return gone
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


def _cause(failures: Sequence[BaseException]) -> BaseException:
    def peer(failure: BaseException) -> bool:
        return _gone(failure) is None and bool(_LOST_PEER.search(str(failure)))

    return min(_each(failures), key=lambda failure: (not _of_memory(failure), peer(failure)))


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


def _gone(failure: BaseException) -> str | None:
    """Return in one sentence how a worker is gone; None of what a worker itself, or anybody else, has said."""
    text = _text(failure)
    address = _ADDRESS.search(text)
    where = f" on {address['of_a_worker'] or address['asked']}" if address else ""
    if silent := _SILENT.search(text):
        return f"a worker{where} has given Ray no sign of life for {silent['seconds']} s"
    if not hasattr(failure, "health_check_failure"):
        return None
    if _UNREACHED.search(text):
        return f"a worker{where} does not answer any more: its process has died, or its host is down or cut off"
    dead = _DEAD.search(text)
    if dead is None:
        return None
    if dead["why"] == "its worker process has died":
        return f"a worker process has died{where}"
    return f"a worker{where} is gone: {dead['why']}"


def _killed(text: str) -> str:
    """Return what matters of the pages that Ray writes when it kills processes for memory."""
    facts, who = [], "a process of the worker group"  # of Ray Train's own helpers too
    if worker := re.search(r"ActorMetadata\([^)]*\bpid=(\d+)", text):
        who = "a worker"
        if held := re.search(rf"\bpid={worker[1]}, actual memory used={_SIZE}", text):
            facts.append(f"it used {_spaced(held[1])}")
    if node := re.search(rf"was {_SIZE} used / {_SIZE} limit", text):
        facts.append(f"{_spaced(node[1])} of its node's {_spaced(node[2])} were in use")
    return f"{who} was killed for want of memory" + (f" ({', and '.join(facts)})" if facts else "")


def killed_by_kernel(held: float, group: tuple[float, float] | None) -> str:
    """Return in one line that the kernel has killed a worker, with the numbers that are known.

    Args:
        held: bytes that the worker with the most had at its last evaluation; 0 where that is not known.
        group: bytes that were in use at the most, and the limit, of the control group that it is in.
    """
    facts = [f"at the last evaluation a worker used {_gb(held)}"] if held else []
    if group is not None:
        facts.append(f"at the most {_gb(group[0])} of the {_gb(group[1])} that its container may use were in use")
    told = f" ({', and '.join(facts)})" if facts else ""
    return f"a worker was killed for want of memory, by the kernel{told}"


def _gb(size: float) -> str:
    return f"{size / 2**30:.2f} GB"


def _spaced(size: str) -> str:
    return re.sub(r"(?<=[\d.]) ?(?=[KMGT]?i?B)", " ", size)
