"""Rows of a local file, a local folder or a hub dataset, through `datasets`."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from mft_ray.errors import UserError

BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]*(:[\w.-]+)?)?")


@dataclass(frozen=True)
class Source:
    """One place that rows come from; equal sources hold the same rows.

    Attributes:
        path: resolved local path, or hub id.
        local: whether it is a local path.
        name: the hub dataset's configuration, if it has several.
        split: the split of a hub dataset or folder; None for a file, which has one only.
    """

    path: str
    local: bool
    name: str | None = None
    split: str | None = None

    def __str__(self) -> str:
        """How messages and example ids call it."""
        if self.local:
            return Path(self.path).name if self.split is None else f"{Path(self.path).name}:{self.split}"
        return ":".join(part for part in (self.path, self.name, self.split) if part)


def locate(given: str, setting: str, split: str) -> Source:
    """Tell a local path from a hub id, and check what can be checked without reading.

    Args:
        given: a file, a folder, or a hub id of the form ``owner/name``, ``owner/name:configuration`` or
            ``owner/name:configuration:split`` (the configuration may be empty).
        setting: the setting that it was given for, named in errors.
        split: the split of a hub dataset or folder, where `given` names none.

    Raises:
        UserError: no such file or folder, a file of another format, or neither a path nor a hub id.
    """
    path = Path(given).expanduser()
    formats = ", ".join(BUILDERS)
    if path.is_dir():
        return Source(str(path.resolve()), local=True, split=split)
    if path.exists():
        if path.suffix.lower() not in BUILDERS:
            raise UserError(f"{setting} is {given!r}, a file of an unknown format. Give a file that ends in {formats}.")
        return Source(str(path.resolve()), local=True)
    if given.startswith(("/", ".", "~")) or path.suffix.lower() in BUILDERS:
        raise UserError(
            f"{setting} is {given!r}, but there is no such file or folder (looked in "
            f"{path.absolute().parent}). Give an existing {formats} file, or the id of a hub dataset such as "
            "openai/gsm8k:main."
        )
    if not _HUB_ID.fullmatch(given):
        raise UserError(
            f"{setting} is {given!r}, which is neither an existing file nor a hub dataset id. Give a "
            f"{formats} file, or an id of the form owner/name, owner/name:configuration or "
            "owner/name:configuration:split."
        )
    owner_name, _, rest = given.partition(":")
    name, _, named_split = rest.partition(":")
    return Source(owner_name, local=False, name=name or None, split=named_split or split)


def read(source: Source, setting: str, first: int | None = None) -> list[dict[str, Any]]:
    """Rows of a source, in its order.

    Args:
        source: where they are.
        setting: the setting that it was given for, named in errors.
        first: at most so many; None reads all.

    Raises:
        UserError: the file is broken, or the hub dataset cannot be had.
    """
    try:
        with quiet():
            return _read_local(source, first) if source.local else _read_hub(source, first)
    except Exception as error:  # whatever `datasets` raises here is about what the user gave
        cause = error.__cause__ or error
        reason = " ".join(f"{type(cause).__name__}: {cause}".split()).removesuffix(".")
        if source.local:
            raise UserError(
                f"{setting} is {source.path}, which could not be read ({reason}). JSONL needs one JSON "
                "object on each line, JSON a list of objects, and a folder a data file for each split."
            ) from error
        raise UserError(
            f"{setting} is {source.path!r}. There is no local file or folder of that name, and as a hub "
            f"dataset (configuration {source.name or 'default'}, split {source.split}) it could not be "
            f"loaded ({reason}). Check the id, write owner/name:configuration:split if it has several, or, "
            "without a network, give a local file."
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the progress bars and complaints of `datasets` off the user's terminal for a while."""
    bars, verbosity = not datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()


def _read_local(source: Source, first: int | None) -> list[dict[str, Any]]:
    path = Path(source.path)
    if path.is_file() and not path.stat().st_size:
        return []
    # A local file is its own cache: leave no second copy of it in the user's home.
    with tempfile.TemporaryDirectory(prefix="mft_ray-") as cache:
        if path.is_dir():
            given: dict[str, Any] = {"path": str(path)}
        else:
            given = {"path": BUILDERS[path.suffix.lower()], "data_files": str(path)}
        split = _slice(source.split or "train", first)
        return list(datasets.load_dataset(**given, split=split, cache_dir=cache, keep_in_memory=True))


def _read_hub(source: Source, first: int | None) -> list[dict[str, Any]]:
    return list(datasets.load_dataset(source.path, source.name, split=_slice(source.split or "train", first)))


def _slice(split: str, first: int | None) -> str:
    return split if first is None else f"{split}[:{first}]"
