"""A run folder as it is at one moment, while others write into it.

What a kill may leave of a run folder at any moment a search can go on from: that is what is carried. Files that refer
to others are taken first, those that they refer to after them, and only then is anything read at leisure: a record may
be a moment older than what it refers to, never younger.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path, PurePosixPath

from mft_ray.utils.files import Signature, signature

# Tune's snapshots are written in place, in a moment, several files. They are taken when none has changed for so long.
_QUIET_S = 0.3
_QUIET_WAIT_S = 30.0
# What is not whole, and has not changed for so long, nobody is writing: it is damaged, here as it will be there.
_DAMAGED_S = 5.0
_COPY_TRIES = 40
# Smaller files are copied, since some are written in place; of larger ones, which are not, another name is taken.
_COPIED = 2**20
_GROUPS, _LIVE = ("work", "groups"), ("lock", "cluster.json")


class Busy(Exception):
    """A run folder is written to without a pause: another moment will do."""


@dataclass(frozen=True)
class Taken:
    """A file as it was at the moment.

    Attributes:
        path: path within the run.
        file: where its content stays for now.
        signed: signature of the file itself by then; of what grows since then more is there.
    """

    path: str
    file: Path
    signed: Signature


def taken(run: Path, into: Path, known: dict[str, Signature]) -> tuple[list[Taken], set[str]]:
    """Take a run folder's changed files.

    Args:
        run: run folder.
        into: folder on the same disk, which is made anew.
        known: signatures of files whose content is known: they are not taken.

    Returns:
        The files that have changed, and the paths of all that there are.

    Raises:
        Busy: Tune's state changes all the time.
    """
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    states = _states(run, into, known)
    # Listed after the states were taken: what these refer to is there by now.
    rest = _take(run, (path for path in of_run(run) if _rank(path) > 1), into, known)
    return states[0] + rest[0], states[1] | rest[1]


def _states(run: Path, into: Path, known: dict[str, Signature]) -> tuple[list[Taken], set[str]]:
    """Take Tune's states, between two times that Tune writes them.

    They are few, and nothing else is looked at meanwhile: the search's own thread may leave this one little time.
    """
    deadline = time.monotonic() + _QUIET_WAIT_S
    while time.monotonic() < deadline:
        before = _tune(run)
        age_s = (time.time_ns() - max((changed for changed, _ in before.values()), default=0)) / 1e9
        if not 0 <= age_s < _QUIET_S:
            found = _take(run, before, into, known)
            whole = all(_is_whole(Path(each.path), each.file) for each in found[0])
            if _tune(run) == before and (whole or age_s > _DAMAGED_S):
                return found
        time.sleep(_QUIET_S / 4)
    raise Busy(f"Tune's state in {run} has changed all the time")


def _take(
    run: Path, paths: Iterable[PurePosixPath], into: Path, known: dict[str, Signature]
) -> tuple[list[Taken], set[str]]:
    found, there = [], set()
    for path in sorted(paths, key=lambda each: (_rank(each), str(each))):
        name = str(path)
        signed = signature(run / path)
        if signed is None:  # gone since it was listed
            continue
        if known.get(name) != signed:
            kept = _kept(run / path, into / blake2b(name.encode(), digest_size=16).hexdigest(), signed)
            if kept is None:
                continue
            found.append(Taken(name, *kept))
        there.add(name)
    return found, there


def of_run(run: Path) -> Iterator[PurePosixPath]:
    """Yield the paths, within a run folder, of all files that belong to the run: not locks, nor what is half-written.

    Args:
        run: run folder.
    """
    for folder, names, files in os.walk(run):
        here = PurePosixPath(Path(folder).relative_to(run).as_posix())
        names[:] = [name for name in names if _belongs(here / name)]
        for name in files:
            if _belongs(here / name) and not os.path.islink(os.path.join(folder, name)):
                yield here / name


def _belongs(path: PurePosixPath) -> bool:
    """Say whether a file or folder is carried: what is hidden is private to who writes it."""
    name, above = path.name, path.parent.name
    private = name.startswith(".") or name.endswith(".lock") or (above == "checkpoints" and name.startswith("partial-"))
    of_process = path.parts[-2:] == _GROUPS or (above == "work" and name in _LIVE) or name == "process.json"
    return not private and not of_process


def _rank(path: PurePosixPath) -> int:
    """Return the place of a file among those that are taken: Tune's states refer to the study, and both to trials."""
    if path.parts[:2] == ("work", "tune") and len(path.parts) == 4:
        return 0 if path.name.startswith("experiment_state") else 1
    return 2 if path.name == "study.db" else 3


def _tune(run: Path) -> dict[PurePosixPath, Signature]:
    """Return signatures of Tune's states of a run's searches, by path."""
    found = {}
    for file in run.glob("work/tune/*/*"):
        path = PurePosixPath(file.relative_to(run).as_posix())
        if _belongs(path) and file.is_file() and (signed := signature(file)) is not None:
            found[path] = signed
    return found


def _kept(path: Path, copy: Path, signed: Signature) -> tuple[Path, Signature] | None:
    """Have a file's content stay as it is; return where, and its signature. None where it has gone meanwhile."""
    try:
        if signed[1] > _COPIED:
            try:
                os.link(path, copy)
            except OSError:
                shutil.copyfile(path, copy)
            return copy, signed
        for _ in range(_COPY_TRIES):
            shutil.copyfile(path, copy)
            now = signature(path)
            if now == signed and copy.stat().st_size == signed[1] and _is_whole(path, copy):
                return copy, signed
            if now is None:
                return None
            signed = now
            time.sleep(0.01)
    except FileNotFoundError:
        return None
    return copy, (signed[0], copy.stat().st_size)  # a log that grows faster than it is copied, or one that is damaged


def _is_whole(path: Path, copy: Path) -> bool:
    """Say whether a copy was not made while somebody wrote the file; of what is no JSON and no pickle nothing tells."""
    if path.suffix not in (".json", ".pkl"):
        return True
    content = copy.read_bytes()
    if content.startswith(pickle.PROTO):  # some of Tune's are called .json
        return content.endswith(pickle.STOP)
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True
