"""Rows of a local file or folder, read by us one by one, or of a hub dataset, through `datasets`."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import datasets
import yaml

from mft_ray.data.rows.files import FORMATS, format_of, rows, unit, without_filled
from mft_ray.data.rows.values import LeftOut, kind
from mft_ray.errors import UserError
from mft_ray.utils.json_types import JsonObject

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]*(:[\w.-]+)?)?")
_WORDS = re.compile(r"[^a-z0-9]+")
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF = {word: split for split, words in _SPLITS.items() for word in words}
_NOT_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")


@dataclass(frozen=True)
class Source:
    """One place that rows come from; equal sources hold the same rows.

    Attributes:
        path: local path, or hub id.
        local: whether it is a local path.
        name: the hub dataset's configuration, if it has several.
        split: the split of a hub dataset or folder; None for a file, which has one only.
        real: what the path leads to, by which sources are compared.
    """

    path: str = field(compare=False)
    local: bool
    name: str | None = None
    split: str | None = None
    real: str = field(init=False)

    def __post_init__(self) -> None:
        """Follow links: a file of a cache may lie elsewhere, under a name without an ending."""
        object.__setattr__(self, "real", os.path.realpath(self.path) if self.local else self.path)

    def __str__(self) -> str:
        """How messages and example ids call it."""
        if self.local:
            return Path(self.path).name if self.split is None else f"{Path(self.path).name}:{self.split}"
        return ":".join(part for part in (self.path, self.name, self.split) if part)


class RowAt(NamedTuple):
    """A row, and where it stands.

    Attributes:
        where: the file and what its numbers count, such as ``train.jsonl, line``.
        number: number of the line, or of the row where the file has no lines.
        row: its values by column, or why it is no row.
    """

    where: str
    number: int
    row: JsonObject | LeftOut


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
    if not given.strip():
        raise UserError(f"{setting} is empty. Give a file, a folder, or the id of a hub dataset.")
    path = Path(given).expanduser()
    formats = ", ".join(FORMATS)
    try:
        is_folder, is_there = path.is_dir(), path.exists()
    except (OSError, ValueError):  # too long for a path, or with a character that none has
        is_folder = is_there = False
    if is_folder:
        return Source(os.path.abspath(path), local=True, split=split)
    if is_there:
        if format_of(path) is None:
            raise UserError(
                f"{setting} is {given!r}, a file of an unknown format. Give a file that ends in {formats}; those of "
                "text may be compressed (.jsonl.gz)."
            )
        return Source(os.path.abspath(path), local=True)
    if given.startswith(("/", ".", "~")) or format_of(path) is not None:
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


def read(
    source: Source, setting: str, first: int | None = None, wanted: Collection[str] | None = None
) -> Iterator[RowAt]:
    """Yield the rows of a source, in its order.

    Args:
        source: where they are.
        setting: the setting that it was given for, named in errors.
        first: at most so many; None reads all.
        wanted: columns whose values matter, where others can be left unread; None reads all.

    Raises:
        UserError: the file is broken, the folder holds no such split, or the hub dataset cannot be had.
    """
    if not source.local:
        yield from _hub_rows(source, setting, first)
        return
    path = Path(source.path)
    files = [path] if source.split is None else _files_of(path, source.split, setting)
    found = (row for file in files for row in _file_rows(file, path, setting, wanted))
    yield from islice(found, first)


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


def _file_rows(file: Path, given: Path, setting: str, wanted: Collection[str] | None) -> Iterator[RowAt]:
    name = file.name if file == given else file.relative_to(given).as_posix()
    where = f"{name}, {unit(file)}"
    try:
        for number, row in rows(file, wanted):
            yield RowAt(where, number, row)
    except (OSError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split()).removesuffix(".") or type(error).__name__
        raise UserError(
            f"{setting} is {given}, which could not be read ({reason if file == given else f'{name}: {reason}'}). "
            "JSONL needs one JSON object on each line, JSON a list of objects, CSV the names of its columns on the "
            "first line."
        ) from error


def _hub_rows(source: Source, setting: str, first: int | None) -> Iterator[RowAt]:
    split = source.split or "train"
    try:
        with quiet():
            found = datasets.load_dataset(
                source.path, source.name, split=split if first is None else f"{split}[:{first}]"
            )
    except Exception as error:  # whatever `datasets` raises here is about what the user gave
        cause = error.__cause__ or error
        reason = " ".join(f"{type(cause).__name__}: {cause}".split()).removesuffix(".")
        raise UserError(
            f"{setting} is {source.path!r}. There is no local file or folder of that name, and as a hub "
            f"dataset (configuration {source.name or 'default'}, split {source.split}) it could not be "
            f"loaded ({reason}). Check the id, write owner/name:configuration:split if it has several, or, "
            "without a network, give a local file."
        ) from error
    where = f"{source}, row"
    for number, row in enumerate(found, start=1):
        if isinstance(row, dict):
            yield RowAt(where, number, {name: without_filled(value) for name, value in row.items()})
        else:
            yield RowAt(where, number, LeftOut(f"it is {kind(row)}, not an object"))


def _files_of(folder: Path, split: str, setting: str) -> list[Path]:
    """Return the files of one split of a folder: those that its name is in, or all if no file names any split."""
    if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
        raise UserError(
            f"{setting} is {folder}, a folder of datasets' save_to_disk. Write it as files that others read too: "
            "dataset.to_parquet or dataset.to_json."
        )
    patterns = _described_files(folder, setting)
    by_split: dict[str | None, list[Path]] = {}
    for file in sorted(folder.rglob("*")):
        inside = file.relative_to(folder)
        if any(part.startswith((".", "__")) for part in inside.parts) or file.name in _NOT_ROWS:
            continue
        if format_of(file) is not None and file.is_file():
            by_split.setdefault(_split_of(inside, patterns), []).append(file)
    # A folder in which no file names a split is one split, to train on.
    found = by_split.get(split) or (by_split.get(None) if split == "train" and set(by_split) == {None} else None)
    if found:
        return found
    holds = "; ".join(
        f"{name or 'of no split'}: {', '.join(file.name for file in files[:5])}{', ...' if len(files) > 5 else ''}"
        for name, files in by_split.items()
    )
    raise UserError(
        f"{setting} is {folder}, a folder that has no file of the split {split} ({holds or 'no data file at all'}). A "
        f"file is of the split that its name or its folder's name has as a word, such as {split}.jsonl or "
        f"data/{split}-00000.parquet, and ends in {', '.join(FORMATS)}. Or give a file."
    )


def _split_of(inside: Path, patterns: dict[str, list[str]] | None) -> str | None:
    """Return the split of a file: as the folder's README says, or by a word of the nearest name that has one."""
    if patterns is not None:
        name = inside.as_posix()
        return next((split for split, given in patterns.items() if any(fnmatchcase(name, one) for one in given)), None)
    stem = inside.name.split(".")[0]
    for part in (stem, *reversed(inside.parts[:-1])):
        for word in _WORDS.split(part.lower()):
            if word in _SPLIT_OF:
                return _SPLIT_OF[word]
    return None


def _described_files(folder: Path, setting: str) -> dict[str, list[str]] | None:
    """Return the patterns of each split that the README of a copied hub dataset lists; None if it lists none.

    Raises:
        UserError: it lists several configurations.
    """
    try:
        _, front, _ = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
        configs = yaml.safe_load(front)["configs"]
        listed = {config["config_name"]: config["data_files"] for config in configs}
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None
    if len(listed) > 1:
        raise UserError(
            f"{setting} is {folder}, a dataset of several configurations ({', '.join(map(str, listed))}). Give the "
            "folder or file of one of them."
        )
    [files] = listed.values()
    if not isinstance(files, list) or not all(
        isinstance(one, dict) and {"split", "path"} <= one.keys() for one in files
    ):
        return None
    found: dict[str, list[str]] = {}
    for one in files:
        paths = one["path"] if isinstance(one["path"], list) else [one["path"]]
        found.setdefault(str(one["split"]), []).extend(map(str, paths))
    return found
