"""Run one job on a private Ray on this machine, then stop that Ray and nothing else.

    python cluster/local.py [--num-cpus N] [--num-gpus N] -- python -m mft_ray.tune --config FILE

Starts Ray with its dashboard on ports that are free, submits the command with ``ray job submit``, shows what
the job prints, and exits with the job's own exit status. Ctrl-C stops the job, then the Ray; a second Ctrl-C
kills both at once. Any other Ray on the machine is left alone.

The job runs in the current folder itself: all is on this machine, so nothing is uploaded, however much is in it.
On a cluster, ``ray job submit --working-dir .`` runs a copy; here a file that is changed while the job runs is
changed for the job too. ``MFT_RAY_LAUNCH_DIR`` tells it where to leave results, as it does there.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, NoReturn

import private_ray
from private_ray import PrivateRay, StartError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# A job begins in a folder of Ray's. The shell becomes the command, so that signals meet the command.
_IN_FOLDER = 'cd "$0" && PYTHONPATH="$0${PYTHONPATH:+:$PYTHONPATH}" exec "$@"'

# Ray's own lines around a job, such as "2026-01-02 03:04:05,678 INFO worker.py:2003 -- Connected ...".
CHATTER = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+\s+INFO (job_manager|worker)\.py:\d+ -- ")


class Interrupted(KeyboardInterrupt):
    """A signal asked us to stop. A KeyboardInterrupt, which asyncio hands on instead of logging it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_status = 128 + number


def main(argv: Sequence[str] | None = None) -> int:
    """Start Ray, run the job, stop Ray; returns the exit status."""
    arguments = _arguments(argv)
    env = private_ray.environment(os.environ, os.getcwd())
    os.environ.clear()
    os.environ.update(env)  # the client in this process needs the same authentication
    ray: PrivateRay | None = None
    status, interrupted = 1, False
    _on_signals(_stop_in_order)
    try:
        log("starting a Ray of our own on this machine")
        ray = private_ray.start(_ray_options(arguments), env)
        token = f"  (token: {env['RAY_AUTH_TOKEN']})" if "RAY_AUTH_TOKEN" in env else ""
        log(f"dashboard: {ray.dashboard}{token}")
        status = run_job(ray, arguments.command, env)
    except StartError as error:
        print(error, file=sys.stderr)
    except Interrupted as interrupt:
        status, interrupted = interrupt.exit_status, True
    finally:
        _on_signals(_stop_at_once)
        if ray is not None:
            private_ray.stop(ray)
    if ray is not None:
        _farewell(ray, status, interrupted)
    return status


def run_job(ray: PrivateRay, command: Sequence[str], env: Mapping[str, str]) -> int:
    """Submit the command, show its output, and return its exit status.

    Raises:
        StartError: the job could not be submitted.
        Interrupted: after stopping the job.
    """
    job_id = f"job-{secrets.token_hex(4)}"
    submit = ["job", "submit", "--address", ray.dashboard]
    log(shlex.join(["ray", *submit, "--", *command]))
    command = ["sh", "-c", _IN_FOLDER, os.getcwd(), *command]
    output = Output(job_id, command)
    client: Any = None
    try:
        child = subprocess.Popen(
            [*private_ray.RAY, *submit, "--submission-id", job_id, "--no-wait", "--", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=dict(env),
            start_new_session=True,
        )
        client = _client(ray)  # the slow import happens while the job is being submitted
        said, _ = child.communicate()
        if child.returncode != 0:
            raise StartError("\n".join(["The job could not be submitted.", *said.strip().splitlines()[-15:]]))
        asyncio.run(output.show(client))
        return _exit_status(client.get_job_info(job_id))
    except Interrupted:
        log("stopping the job, then Ray (Ctrl-C again kills both at once)")
        with contextlib.suppress(Exception):  # it may not have been submitted yet
            client = client or _client(ray)
            client.stop_job(job_id)
            asyncio.run(asyncio.wait_for(output.show(client), private_ray.STOP_TIMEOUT_S))
        raise


class Output:
    """What a job prints, less Ray's own lines, shown once however often we have to connect."""

    def __init__(self, job_id: str, command: Sequence[str]) -> None:
        self._job_id = job_id
        self._shown = 0  # characters
        self._opening = f"Running entrypoint for job {job_id}: {shlex.join(command)}".splitlines()

    async def show(self, client: Any) -> None:
        """Print what has not been printed yet, until the job has ended."""
        while True:
            position = 0
            # A lost connection is not a lost job: connect again and go on from where we were.
            with contextlib.suppress(RuntimeError, OSError):
                async for text in client.tail_job_logs(self._job_id):
                    fresh = text[max(0, self._shown - position) :]
                    position += len(text)
                    self._shown = max(self._shown, position)
                    self._print(fresh)
            if client.get_job_status(self._job_id).is_terminal():
                return
            await asyncio.sleep(0.5)

    def _print(self, text: str) -> None:
        for line in text.splitlines(keepends=True):
            if CHATTER.match(line):
                continue
            if self._opening and line.rstrip("\n") == self._opening[0]:
                del self._opening[0]
                continue
            print(line, end="")
        sys.stdout.flush()


def log(text: str) -> None:
    """Print one line of ours, told apart from the job's by its prefix."""
    print(f"[local ray] {text}", flush=True)


def _exit_status(info: Any) -> int:
    """The status of the job's command; as a shell has it, 128 + number for one that a signal ended."""
    if info.driver_exit_code is not None:
        code = int(info.driver_exit_code)
        return code if code >= 0 else 128 - code
    if info.status.name == "SUCCEEDED":
        return 0
    log(f"the job did not finish: {info.status.name}. {info.message or ''}".strip())
    return 1


def _client(ray: PrivateRay) -> Any:
    from ray.job_submission import JobSubmissionClient

    logging.disable(logging.INFO)  # Ray's word on every connection that it opens and closes
    return JobSubmissionClient(ray.dashboard)


def _on_signals(handler: Callable[[int, FrameType | None], NoReturn]) -> None:
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup, or a background job of a script
            signal.signal(number, handler)


def _stop_in_order(number: int, _frame: FrameType | None) -> NoReturn:
    _on_signals(_stop_at_once)
    raise Interrupted(number)


def _stop_at_once(number: int, _frame: FrameType | None) -> NoReturn:
    private_ray.kill_everything()
    os._exit(128 + number)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        usage="python cluster/local.py [--num-cpus N] [--num-gpus N] -- COMMAND ...",
        description="Run one job on a private Ray on this machine, then stop that Ray and nothing else.",
        epilog="Example: python cluster/local.py -- python -m mft_ray.tune --config FILE",
    )
    parser.add_argument("--num-cpus", type=int, metavar="N", help="CPUs this Ray may hand out (default: all)")
    parser.add_argument("--num-gpus", type=int, metavar="N", help="GPUs this Ray may hand out (default: all)")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="what to run, after --")
    arguments = parser.parse_args(argv)
    if arguments.num_cpus is not None and arguments.num_cpus < 1:
        parser.error(f"--num-cpus must be at least 1, got {arguments.num_cpus}")
    if arguments.num_gpus is not None and arguments.num_gpus < 0:
        parser.error(f"--num-gpus must not be negative, got {arguments.num_gpus}")
    return arguments


def _ray_options(arguments: argparse.Namespace) -> list[str]:
    given = {"--num-cpus": arguments.num_cpus, "--num-gpus": arguments.num_gpus}
    return [f"{name}={value}" for name, value in given.items() if value is not None]


def _farewell(ray: PrivateRay, status: int, interrupted: bool) -> None:
    # 2 says that the input was wrong: Ray's logs have nothing to add.
    if status in (0, 2) or interrupted:
        shutil.rmtree(ray.folder, ignore_errors=True)
        log("stopped")
    else:
        log(f"stopped; the job failed with exit status {status}. Ray's own logs: {ray.logs}")


if __name__ == "__main__":
    sys.exit(main())
