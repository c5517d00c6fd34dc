"""Searches as a user runs them: in processes of their own, with a Ray of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil  # type: ignore[import-untyped]

TIMEOUT_S = 900  # a hundred seconds where nothing else runs


def outer() -> dict[str, str]:
    """Return the environment without what the Ray of these tests has added to it, such as its temporary folder."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


def start(cwd: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mft_ray.tune", *arguments],
        cwd=cwd,
        env={**outer(), **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def run(cwd: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    process = start(cwd, *arguments, **environment)
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        kill(process)
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def kill(process: subprocess.Popen[str]) -> None:
    """As when a machine goes down: the search, its own Ray and all workers, at once."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        try:
            member.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    process.communicate()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive


def at_work(folder: Path) -> dict[str, int]:
    """The step of each trial that is being trained."""
    paths = (folder / "work" / "trials").glob("*/progress.json")
    return {
        path.parent.name: json.loads(path.read_text())["step"]
        for path in paths
        if not path.with_name("outcome.json").exists()
    }


def evaluations(folder: Path, trial: str) -> list[tuple[int, float]]:
    """The step of each evaluation of a trial and its seconds until then, which one that is repeated would not share."""
    out = folder / "work" / "trials" / trial
    path = next(path for path in (out / "outcome.json", out / "progress.json") if path.exists())
    return [(row["step"], row["seconds"]) for row in json.loads(path.read_text())["history"]]


def in_the_middle(folder: Path) -> bool:
    """Whether one trial has ended and another has begun to train."""
    trials = folder / "work" / "trials"
    ended = {path.parent for path in trials.glob("*/outcome.json")}
    begun = {path.parent for path in trials.glob("*/progress.json")}
    return bool(ended) and bool(begun - ended)


def command(cwd: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a sub-command of `mft-ray`."""
    return subprocess.run(
        [sys.executable, "-m", "mft_ray", *arguments],
        cwd=cwd,
        env={**outer(), **environment},
        text=True,
        capture_output=True,
        timeout=TIMEOUT_S,
    )
