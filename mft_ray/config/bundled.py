"""Search spaces that come with the package, by name."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def spaces_folder() -> Path:
    """Return the folder of the search spaces: in the package where it is installed, beside it in a checkout."""
    installed = _PACKAGE / "tune_spaces"
    return installed if installed.is_dir() else _PACKAGE.parent / "tune_spaces"


def names() -> list[str]:
    """Return the names of all search spaces, such as ``quickstart`` or ``experiments/toy``."""
    folder = spaces_folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def found(given: str | os.PathLike[str]) -> Path:
    """Return the file that a path or a name stands for; a file of that name comes first.

    Args:
        given: path of a YAML file, or name of a search space.
    """
    path = Path(given)
    return spaces_folder() / f"{path}.yaml" if not path.exists() and str(given) in names() else path
