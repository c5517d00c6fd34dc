"""The files that go with a verdict to a service."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from mft_ray.config import ArtifactName
from mft_ray.models.names import BEST_MODEL
from mft_ray.runs.folder import RunFolder


def files_of(folder: RunFolder, names: Sequence[ArtifactName]) -> dict[str, Path]:
    """Return the files of a finished search by the path that they get on a service.

    Args:
        folder: run folder.
        names: what is asked for; what is not there is left out.
    """
    found: dict[str, Path] = {}
    if "config" in names:
        found["config.yaml"] = folder.config
    if "report" in names:
        found["report.html"] = folder.root / "report.html"
    if "mask" in names:
        inside = ((path, path.relative_to(folder.best)) for path in sorted(folder.best.rglob("*")) if path.is_file())
        found |= {f"best/{place.as_posix()}": path for path, place in inside if place.parts[0] != BEST_MODEL}
    return {place: path for place, path in found.items() if path.exists()}


def digest(paths: Iterable[Path]) -> str:
    """Return a digest of the contents of files; one that is not there counts as empty.

    Args:
        paths: paths of the files.
    """
    together = hashlib.sha256()
    for path in paths:
        together.update(hashlib.sha256(path.read_bytes() if path.exists() else b"").digest())
    return together.hexdigest()
