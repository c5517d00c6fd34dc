"""What is wrong with a file of a run, as far as the file itself can tell: empty, cut off, or something else."""

from __future__ import annotations

import json
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

from mft_ray.config.parsing.yaml_text import read_yaml
from mft_ray.errors import UserError
from mft_ray.masking import load_mask
from mft_ray.models.names import MASK
from mft_ray.utils.files import Damaged, read_json

_PICKLE = b"\x80"  # the first byte of every protocol from 2 on
# Of programs that these files are not for: nothing reads them, and some are empty.
_UNREAD = (".lock", ".validate_storage_marker")


def check_path(path: Path) -> None:
    """Refuse a damaged file, or a folder with one in it.

    Args:
        path: path of the file or the folder.

    Raises:
        Damaged: naming the first file found.
    """
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file() and not file.name.endswith(_UNREAD):
            _check_file(file)


def _check_file(file: Path) -> None:
    if file.stat().st_size == 0:
        raise Damaged(file, "is empty")
    if file.name == MASK:
        _check_mask(file)
    elif check := _BY_SUFFIX.get(file.suffix):
        check(file)


def _check_mask(file: Path) -> None:
    try:
        load_mask(file)
    except UserError as error:
        raise Damaged(file, f"cannot be read: {error}") from None


def _check_json(file: Path) -> None:
    read_json(file, lambda content: content)


def check_lines(file: Path) -> None:
    """Refuse a file of JSON lines one of which is none.

    Args:
        file: with a JSON mapping on each line.

    Raises:
        Damaged: it is empty or half-written.
    """
    lines = file.read_bytes().splitlines()
    try:
        if not lines or not all(isinstance(json.loads(line), dict) for line in lines):
            raise Damaged(file, "is empty or half-written")
    except ValueError:
        raise Damaged(file, "is half-written") from None


def check_pickle(file: Path) -> None:
    """Refuse a file that is no whole pickle. Nothing of it is run.

    Args:
        file: file of the pickle.

    Raises:
        Damaged: it is empty, half-written or something else.
    """
    content = file.read_bytes()
    if not content.startswith(_PICKLE):
        raise Damaged(file, "is no pickle" if content else "is empty")
    try:
        for _ in pickletools.genops(content):
            pass
    except (ValueError, IndexError, KeyError) as error:
        raise Damaged(file, f"is half-written ({error})") from None


def _check_tensors(file: Path) -> None:
    try:
        with safe_open(file, framework="np") as opened:  # which compares the file's length with what its head says
            opened.keys()
    except (SafetensorError, OSError) as error:
        raise Damaged(file, f"is half-written ({error})") from None


def _check_zip(file: Path) -> None:
    try:
        with zipfile.ZipFile(file):  # whose directory is at its end
            pass
    except zipfile.BadZipFile as error:
        raise Damaged(file, f"is half-written ({error})") from None


def _check_yaml(file: Path) -> None:
    try:
        read: Any = read_yaml(file.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError):
        raise Damaged(file, "is half-written, or no YAML") from None
    if not isinstance(read, dict):
        raise Damaged(file, "holds no settings")


_BY_SUFFIX = {
    ".json": _check_json,
    ".jsonl": check_lines,
    ".safetensors": _check_tensors,
    ".pt": _check_zip,
    ".bin": _check_zip,
    ".yaml": _check_yaml,
}


def damage(path: Path) -> Damaged | None:
    """Return what is wrong with a file or a folder; None if nothing is, or it is not there.

    Args:
        path: path of the file or the folder.
    """
    try:
        check_path(path)
    except Damaged as found:
        return found
    return None
