"""What is made of the pages that Ray, torch and CUDA write when a worker is gone."""

from __future__ import annotations

import pickle

import pytest

from mft_ray.errors import UserError
from mft_ray.workers.failures import killed_by_kernel, note_traceback, out_of_memory, raised, root_cause, traceback_of

# Ray 2.60's own, shortened.
WALL = """A worker health check failed.
Worker info: Worker(
  actor=Actor(RayTrainWorker, e20dd302),
  metadata=ActorMetadata(
    hostname='vm',
    node_id='998f',
    node_ip='192.0.2.2',
    pid=13524,
  ),
)"""
KILLED = """2 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 1.2.3.4, ID: 9) was \
11.81GB used / 23.54GB limit (0.501852)
OOM kill reason: Memory usage 12646334464B exceeded threshold of 12638255104B (50.0% of 25276510208B limit)
Selected to kill: (Actor(e8d8): task name=PreemptionWatcher, pid=13834, actual memory used=0.11GB, worker ID=0b)
Selected to kill: (Actor(e20d): task name=RayTrainWorker.__init__, pid=13524, actual memory used=4.21GB, worker ID=a0)
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io/."""
DEAD = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
    "unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was "
    "killed by the OOM killer due to high memory usage, (2) ray stop --force is called."
)
UNREACHED = (
    "The actor c414abaa8f67 is unavailable: The actor is temporarily unavailable: RpcError: RPC error: failed to "
    "connect to all addresses; last error: UNKNOWN: ipv4:192.0.2.2:17420: Failed to connect to remote host: {why} "
    "rpc_code: 14. The task may or may not have been executed on the actor."
)
NODE_DIED = """The actor died unexpectedly before finishing this task.
The actor died because its node has died. Node Id: 998f
\tthe actor's node was terminated unexpectedly: health check failed due to missing too many heartbeats"""
HANGS = f"""A worker health check has been hanging for 612.34 seconds. Marking the worker as dead.
{WALL}
Set the X environment variable to increase the timeout (current value: 600 seconds)."""
LOST = RuntimeError("[/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:7841.")


class Unhealthy(Exception):
    """As Ray Train's: what happened to the worker is an attribute."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{WALL}\n{reason}")
        self.health_check_failure = RuntimeError(reason)


def test_a_worker_that_ray_killed_for_memory_is_one_line() -> None:
    for failures in ([Unhealthy(KILLED)], [LOST, Unhealthy(KILLED)]):
        assert out_of_memory(*failures)
        assert root_cause(*failures) == (
            "a worker was killed for want of memory (it used 4.21 GB, and 11.81 GB of its node's 23.54 GB were in use)"
        )
    helper = RuntimeError(f"Training failed due to controller error:\n{KILLED}")
    assert out_of_memory(helper)
    assert root_cause(helper) == (
        "a process of the worker group was killed for want of memory (11.81 GB of its node's 23.54 GB were in use)"
    )
    assert root_cause(Unhealthy("Worker exit type: NODE_OUT_OF_MEMORY")) == ("a worker was killed for want of memory")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("NCCL Error 1: unhandled cuda error: out of memory"),
        RuntimeError("std::bad_alloc"),
        OSError(12, "Cannot allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_is_recognised(error: Exception) -> None:
    assert out_of_memory(error)
    assert out_of_memory(LOST, error)
    assert "lost contact" not in root_cause(LOST, error)
    assert "\n" not in root_cause(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(DEAD),
        Unhealthy(DEAD),
        Unhealthy(UNREACHED.format(why="Connection reset by peer")),
        RuntimeError(HANGS),
        LOST,
        FloatingPointError("the loss is not finite"),
        OSError(28, "No space left on device"),
        KeyError("memory"),
    ],
)
def test_other_failures_are_not_taken_for_that(error: Exception) -> None:
    assert not out_of_memory(error)
    assert root_cause(error)


def test_what_ray_only_guesses_is_left_out() -> None:
    assert root_cause(RuntimeError(DEAD)) == "The actor is dead because its worker process has died."


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (Unhealthy(DEAD), "a worker process has died on 192.0.2.2"),
        (
            Unhealthy(NODE_DIED),
            "a worker on 192.0.2.2 is gone: its node has died",
        ),
        (
            Unhealthy(UNREACHED.format(why="Connection refused")),
            "a worker on 192.0.2.2 does not answer any more: its process has died, or its host is down or cut off",
        ),
        (
            Unhealthy(UNREACHED.format(why="Connection reset by peer")),  # to which it is nobody's peer
            "a worker on 192.0.2.2 does not answer any more: its process has died, or its host is down or cut off",
        ),
        (RuntimeError(HANGS), "a worker on 192.0.2.2 has given Ray no sign of life for 612 s"),
    ],
)
def test_a_worker_that_is_gone_is_one_plain_sentence(error: Exception, sentence: str) -> None:
    assert root_cause(LOST, error) == root_cause(error, LOST) == sentence
    assert not raised(LOST, error)


def test_a_kernel_that_kills_is_told_with_its_numbers() -> None:
    assert killed_by_kernel(0.0, None) == "a worker was killed for want of memory, by the kernel"
    assert killed_by_kernel(1.5 * 2**30, (3.9 * 2**30, 4 * 2**30)) == (
        "a worker was killed for want of memory, by the kernel (at the last evaluation a worker used 1.50 GB, and at "
        "the most 3.90 GB of the 4.00 GB that its container may use were in use)"
    )


def carried(error: Exception) -> Exception:
    """As an error comes from a worker."""
    try:
        raise error
    except Exception as caught:
        note_traceback(caught)
        found: Exception = pickle.loads(pickle.dumps(caught))
        return found


def test_a_workers_traceback_comes_with_its_error() -> None:
    found = carried(KeyError("id"))
    for failures in ([found], [LOST, found]):
        trace = traceback_of(*failures)
        assert trace is not None
        assert "in carried\n    raise error" in trace
        assert trace.endswith("KeyError: 'id'\n")
        assert raised(*failures)


@pytest.mark.parametrize("error", [LOST, Unhealthy(DEAD), Unhealthy(KILLED)])
def test_a_lost_worker_has_none_and_no_code_is_to_blame(error: Exception) -> None:
    assert traceback_of(error) is None
    assert not raised(error)
    assert not raised(carried(LOST))
    assert not raised(carried(MemoryError()))


def test_what_the_user_gave_needs_no_traceback_but_would_fail_again() -> None:
    error = carried(UserError("There is no model."))
    assert traceback_of(error) is None
    assert raised(error)
