"""environment.json: what a run was made with, kept for whoever repeats it and compared when it is gone on with."""

from __future__ import annotations

import hashlib
import subprocess
import time
from pathlib import Path

import pyarrow as pa
import ray
from pydantic import Field

from mft_ray.data.store import SPLITS, open_split
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.records import FileRecord, Record
from mft_ray.utils.console import log_warning
from mft_ray.utils.files import Damaged
from mft_ray.workers.machine import PACKAGE, this_machine

_CODE = Path(__file__).parents[2]
_GIT_S = 10
# What changes between two sessions on the same machine, and changes no result.
_INCIDENTAL = ("began", "host")


class Environment(Record):
    """What one session of a run had.

    Attributes:
        began: time at which the session began.
        host: name of the driver's host.
        system: operating system of the driver's host.
        python: version of Python.
        packages: version by name.
        commit: git commit of mft_ray's code, ``+`` behind it where files differ; None where it is no checkout.
        cuda: version of CUDA that torch was built for.
        driver: version of the GPU's driver on the driver's host.
        cards: GPUs of the driver's host.
        cluster: resources of the cluster's nodes by then, and how many nodes there were.
        data: SHA-256 of the tokens and labels of each split.
    """

    began: str
    host: str
    system: str
    python: str
    packages: dict[str, str]
    commit: str | None = None
    cuda: str | None = None
    driver: str | None = None
    cards: list[str] = Field([])
    cluster: dict[str, float] = Field({})
    data: dict[str, str] = Field({})


class Environments(FileRecord):
    """environment.json: the sessions of a run, one for each change of what they had."""

    sessions: list[Environment]


def keep_environment(folder: RunFolder) -> None:
    """Write down what this session has; where it differs from the session before, say how.

    Args:
        folder: folder of the run, its data prepared.
    """
    path = folder.environment
    try:
        kept = Environments.load(path).sessions
    except (FileNotFoundError, Damaged):  # a damaged one is told, and set aside, when the folder is held
        kept = []
    now = _now(folder)
    changed = changes(kept[-1], now) if kept else []
    if changed:
        log_warning(f"since this run was begun there have changed: {'; '.join(changed)}. Results may differ with them")
    if changed or not kept:
        Environments(sessions=[*kept, now]).save(path)


def changes(before: Environment, now: Environment) -> list[str]:
    """Return what may change results, one text a difference.

    Args:
        before: what an earlier session had.
        now: what this one has.
    """
    old, new = _flat(before), _flat(now)
    return [
        f"{name} {old.get(name, 'none')} → {new.get(name, 'none')}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _flat(environment: Environment) -> dict[str, str]:
    """Return by name what may change results: not how large the cluster is, nor when and where the driver runs."""
    content = environment.model_dump(exclude={*_INCIDENTAL, "cluster", "packages", "data", "cards"})
    flat = {name: str(value) for name, value in content.items() if value is not None}
    flat |= environment.packages
    flat |= {f"data.{split}": digest[:12] for split, digest in environment.data.items()}
    return flat | ({"GPUs": ", ".join(sorted(set(environment.cards)))} if environment.cards else {})


def _now(folder: RunFolder) -> Environment:
    machine = this_machine()
    resources = {name: value for name, value in ray.cluster_resources().items() if not name.startswith("node:")}
    return Environment(
        began=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        host=machine.host,
        system=machine.system,
        python=machine.python,
        packages=machine.packages,
        commit=_commit(),
        cuda=machine.cuda,
        driver=machine.cards[0].driver if machine.cards else None,
        cards=[card.name for card in machine.cards],
        cluster={"nodes": len([node for node in ray.nodes() if node["Alive"]]), **resources},
        data={split: _digest(folder.data, split) for split in SPLITS if (folder.data / split).is_dir()},
    )


def _digest(data: Path, split: str) -> str:
    """Return a hash of what is learned and scored, whatever wrote it: of tokens, labels and answers in their order."""
    found = hashlib.sha256()
    table = open_split(data, split).data.table
    for name in ("input_ids", "labels", "answer"):
        column = table.column(name).combine_chunks()
        for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
            _update(found, chunk)
    return found.hexdigest()


def _update(found: hashlib._Hash, array: pa.Array) -> None:
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        found.update(array.value_lengths().to_numpy(zero_copy_only=False).astype("<i8").tobytes())
        found.update(array.flatten().to_numpy(zero_copy_only=False).tobytes())
        return
    for value in array.to_pylist():
        text = str(value).encode("utf-8", "surrogatepass")
        found.update(len(text).to_bytes(8, "little") + text)


def _commit() -> str | None:
    """Return the commit of the code that runs, if it is a checkout of mft_ray's."""
    if not (_CODE / ".git").exists() or not (_CODE / PACKAGE).is_dir():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(_CODE), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=_GIT_S, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", PACKAGE) else "")
    except (OSError, subprocess.SubprocessError):
        return None
