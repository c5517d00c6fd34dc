"""What a run in an object store consists of: one object names all others, and takes its predecessor's place at once."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import Any

from mft_ray.errors import UserError
from mft_ray.store.bucket import Bucket, StoreFailed

# All that is not for others to read is below this name.
OWN = ".mft_ray"
MANIFEST, LEASE, OBJECTS = f"{OWN}/manifest.json", f"{OWN}/lease.json", f"{OWN}/objects"
SCHEMA = 1
_READS, _PAUSE_S = 5, 0.3


@dataclass(frozen=True)
class Entry:
    """A file of a run.

    Attributes:
        size: bytes.
        digest: what tells its content from any other, see `mft_ray.store.bucket.digest_of`.
        changed: when it was changed, in nanoseconds since 1970 by the clock of who did.
    """

    size: int
    digest: str
    changed: int

    def key(self, path: str) -> str:
        """Return the name of the object that has its content: never another's, so that none is overwritten.

        Args:
            path: path of the file within the run.
        """
        return f"{OBJECTS}/{path}.{self.digest}"


@dataclass(frozen=True)
class Manifest:
    """All files of a run at one moment.

    Attributes:
        generation: what tells it from any other.
        root: path that the run folder had where it was written: records of a run name files by it.
        files: by path within the run.
    """

    generation: str
    root: str
    files: dict[str, Entry] = field(default_factory=dict)

    @property
    def objects(self) -> set[str]:
        """Names of the objects with its files' contents."""
        return {entry.key(path) for path, entry in self.files.items()}

    def save(self, bucket: Bucket) -> None:
        """Make it what the run is.

        Args:
            bucket: of the run.

        Raises:
            StoreFailed: it cannot be written; the one before holds then.
        """
        content = asdict(self)
        bucket.write(MANIFEST, json.dumps({"schema": SCHEMA, "digest": _digest(content), **content}).encode())

    @classmethod
    def load(cls, bucket: Bucket) -> Manifest | None:
        """Return what a run is; None where there is none.

        Args:
            bucket: of the run.

        Raises:
            StoreFailed: it cannot be read, or holds something else.
            UserError: it is of a later version.
        """
        for tries in range(1, _READS + 1):
            content = bucket.read(MANIFEST)
            if content is None:
                return None
            try:
                found: dict[str, Any] = json.loads(content)
                schema = int(found["schema"])
                if schema > SCHEMA:
                    break
                kept = {name: found[name] for name in ("generation", "root", "files")}
                if found["digest"] != _digest(kept):
                    raise ValueError("its parts are of two manifests")
                files = {path: Entry(**entry) for path, entry in kept["files"].items() if _within(path)}
                return cls(str(kept["generation"]), str(kept["root"]), files)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                # Who reads while it is replaced may get the beginning of the one and the length of the other.
                if tries == _READS:
                    raise StoreFailed(
                        f"{bucket.address}: {MANIFEST} does not hold what was written there ({error!r}). Put a version "
                        "of it back, where the bucket keeps versions, or begin anew elsewhere: nothing else says which "
                        "objects belong together."
                    ) from error
                time.sleep(_PAUSE_S)
        raise UserError(
            f"{bucket.address} was written by a later version of mft_ray (schema {schema}, this one reads up to "
            f"{SCHEMA}). Use that version, or a later one."
        )


def _digest(content: dict[str, Any]) -> str:
    return blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _within(path: str) -> bool:
    """Say whether a path stays within the folder that it is relative to."""
    if path.startswith("/") or {"", ".", ".."} & set(path.split("/")):
        raise ValueError(f"{path} is no path within a run")
    return True
