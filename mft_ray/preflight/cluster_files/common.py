"""What is looked at in every kind of file: placeholders, versions, and what a search asks of its cluster."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ray

from mft_ray.config import Config
from mft_ray.preflight.finding import Finding

# Where the files that come with mft_ray put runs.
RUNS = Path("/mnt/runs")
_PLACEHOLDER = re.compile(r"YOUR_[A-Z_]*[A-Z]")
_RAY = re.compile(r"(?:\bray:(?:ray-)?|[:-]ray-|\bray(?:\[[^\]]*\])?==|rayVersion:\s*\"?)(\d+\.\d+\.\d+)")
_PYTHON = re.compile(r"-py3(\d+)\b")
_PYTHONS = (11, 12)


@dataclass(frozen=True)
class Wanted:
    """What a file must have room for.

    Attributes:
        runs: folder that runs go to, as nodes see it.
        workers: workers of one trial.
        cpus: CPUs of each; None where no search was named.
        gpus: GPUs of each; None where no search was named.
    """

    runs: Path = RUNS
    workers: int = 1
    cpus: float | None = None
    gpus: float | None = None

    @classmethod
    def of(cls, config: Config | None, runs: Path | None) -> Wanted:
        """Return what a search asks for.

        Args:
            config: configuration of the search; None where none is named.
            runs: folder that runs go to, as nodes see it; None takes that of the files that come with mft_ray.
        """
        if config is None:
            return cls(runs or RUNS)
        asked = config.scaling
        return cls(runs or RUNS, asked.workers, asked.cpus_per_worker, asked.gpus_per_worker)


def look_at_text(text: str, comment: str = "#") -> Iterator[Finding]:
    """Look for placeholders that are left, each with its line, and at the versions of Ray and Python.

    Args:
        text: text of the file.
        comment: pattern of what begins a comment, at a line's start.
    """
    code = _without_comments(text, comment)
    left = [(number, found) for number, line in enumerate(code, 1) for found in _PLACEHOLDER.findall(line)]
    for number, name in left:
        yield Finding("wrong", f"line {number}", f"{name} is left to fill in")
    if not left:
        yield Finding("ok", "placeholders", "none is left")
    yield from _versions(code)


def _without_comments(text: str, comment: str) -> list[str]:
    whole = re.compile(rf"\s*{comment}")
    return ["" if whole.match(line) else re.split(r"\s#\s", line)[0] for line in text.splitlines()]


def _versions(code: list[str]) -> Iterator[Finding]:
    there = ray.__version__
    found = {(number, version) for number, line in enumerate(code, 1) for version in _RAY.findall(line)}
    for number, version in sorted(found):
        if version != there:
            yield Finding(
                "wrong",
                f"line {number}: Ray",
                f"{version}, and here is {there}: nodes and clients must have the same. Name {there} there, or "
                f"pip install 'ray=={version}' here",
            )
    if found and all(version == there for _, version in found):
        yield Finding("ok", "Ray", f"{there}, as here")
    for number, line in enumerate(code, 1):
        for minor in _PYTHON.findall(line):
            if int(minor) not in _PYTHONS:
                yield Finding("wrong", f"line {number}: Python", f"3.{minor}: mft_ray needs 3.11 or 3.12 there")
