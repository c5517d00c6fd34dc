"""The copy of a run on this machine's own disk, in which all work is done."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from uuid import uuid4

from filelock import FileLock

from mft_ray.errors import UserError
from mft_ray.store.address import Address
from mft_ray.store.manifest import Entry
from mft_ray.utils.files import Signature, write_json
from mft_ray.utils.json_types import JsonObject

# Folder for the copies of all runs; on a cluster as each node sees it.
SCRATCH = "MFT_RAY_SCRATCH"
_NOTE = "scratch.json"


@dataclass
class Synced:
    """What a copy and its store had in common last.

    Attributes:
        generation: of the manifest; empty where the copy was never whole.
        files: what the manifest says of each file, by path.
        signatures: of the files here, as they were then.
    """

    generation: str = ""
    files: dict[str, Entry] = field(default_factory=dict)
    signatures: dict[str, Signature] = field(default_factory=dict)


class Scratch:
    """A run's place on this machine: the run folder, and beside it what is known of the store.

    The same address has the same place on every machine where the home folder, or ``MFT_RAY_SCRATCH``, is the same.

    Args:
        address: of the run.
        home: folder of its copy; None takes its own.
    """

    def __init__(self, address: Address, home: Path | None = None) -> None:
        self.address = address
        self.home = home or _base() / blake2b(f"{address.scheme}://{address.place}".encode(), digest_size=8).hexdigest()
        self.run = self.home / address.name
        self.taken = self.home / "taken"
        self._note = self.home / _NOTE

    @classmethod
    def around(cls, folder: Path) -> Scratch | None:
        """Return the one that a folder is the run folder of; None for any other folder.

        Args:
            folder: absolute path, or one relative to the current folder.
        """
        folder = Path(os.path.abspath(folder))
        try:
            text = str(json.loads((folder.parent / _NOTE).read_bytes())["address"])
            found = cls(Address.parse(text), folder.parent)
        except (OSError, ValueError, KeyError, TypeError, UserError):
            return None
        return found if found.run == folder else None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Context manager during which nobody else carries anything between this copy and its store.

        Raises:
            UserError: the folder cannot be made.
        """
        try:
            self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise UserError(
                f"{self.home}, where {self.address} is worked on here, cannot be made: {error.strerror}. Set {SCRATCH} "
                "to a folder on a disk of this machine (on a cluster: of each, by the same path)."
            ) from None
        with FileLock(self.home / "carrying"):
            yield

    def mark(self) -> None:
        """Have the folder say what it is the copy of, before anything is written there."""
        if not self._note.exists():
            self.save(Synced())

    def synced(self, generation: str | None = None) -> Synced:
        """Return what the copy and its store had in common last.

        Args:
            generation: of the manifest that the store has, where that is known: a push that was killed right after it
                had written that has noted both before.
        """
        try:
            states = [_state(found) for found in json.loads(self._note.read_bytes())["states"]]
            return next((state for state in states if state.generation == generation), states[0])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
            return Synced()  # all is looked at anew

    def save(self, *states: Synced) -> None:
        """Note what the copy and its store have in common now, or, where one of several is true, those."""
        found = [
            {
                "generation": state.generation,
                "signatures": state.signatures,
                "files": {path: vars(entry) for path, entry in state.files.items()},
            }
            for state in states
        ]
        write_json(self._note, {"address": str(self.address), "states": found})


def note_above(path: Path) -> Path | None:
    """Return the file that marks a machine's copy of a run; None where the run is no copy.

    Args:
        path: any path in the run.
    """
    return next((note for folder in path.parents if (note := folder / _NOTE).exists()), None)


def _state(found: JsonObject) -> Synced:
    return Synced(
        str(found["generation"]),
        {path: Entry(**entry) for path, entry in found["files"].items()},
        {path: (int(signed[0]), int(signed[1])) for path, signed in found["signatures"].items()},
    )


def new_generation() -> str:
    """Return what tells a manifest from any other."""
    return uuid4().hex


def _base() -> Path:
    given = os.environ.get(SCRATCH)
    if given is not None and not Path(given).expanduser().is_absolute():
        raise UserError(f"{SCRATCH} is {given!r}, which is not an absolute path. Give one, or leave it out.")
    if given is not None:
        return Path(given).expanduser().resolve()
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches.expanduser().resolve() / "mft_ray" / "runs"  # as paths within a run are written into its records
