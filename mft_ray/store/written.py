"""work/store.json: how much a run has written into its store, over all sessions and machines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mft_ray.utils.files import Damaged, read_json, write_json

NAME = "work/store.json"


@dataclass
class Written:
    """Bytes and objects.

    Attributes:
        address: where they were written to last.
        bytes: bytes of all objects that were ever written.
        objects: number of them.
        trials: bytes of those with files of a trial, by its id.
    """

    address: str
    bytes: int = 0
    objects: int = 0
    trials: dict[str, int] = field(default_factory=dict)

    @classmethod
    def load(cls, run: Path) -> Written | None:
        """Return what was written so far; None where nothing was, or that is not known.

        Args:
            run: run folder.
        """
        try:
            return read_json(run / NAME, _read)
        except (FileNotFoundError, Damaged):
            return None

    def add(self, sizes: Iterable[tuple[str, int]]) -> None:
        """Count what is written now.

        Args:
            sizes: path of each file within the run, and its bytes.
        """
        for path, size in sizes:
            self.bytes += size
            self.objects += 1
            if (trial := trial_of(path)) is not None:
                self.trials[trial] = self.trials.get(trial, 0) + size

    def save(self, run: Path) -> None:
        """Keep it in a run folder."""
        write_json(run / NAME, {"schema": 1, **asdict(self)})


def trial_of(path: str) -> str | None:
    """Return the trial that a file belongs to; None for any other file.

    Args:
        path: path within the run.
    """
    parts = path.split("/")
    return parts[2] if parts[:2] == ["work", "trials"] and len(parts) > 3 else None


def _read(content: dict[str, object]) -> Written:
    kept = {name: content[name] for name in ("address", "bytes", "objects", "trials")}
    found = Written(**kept)  # type: ignore[arg-type]
    found.bytes, found.trials = int(found.bytes), {name: int(size) for name, size in found.trials.items()}
    return found
