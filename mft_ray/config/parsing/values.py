"""What no setting may be, whatever it is called: told with its place before anything else looks at it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

# A name becomes a folder, with a time or an ending after it; file systems end at 255 bytes.
_MAX_NAME_BYTES = 100


def unusable(value: Any, path: str = "") -> Iterator[str]:
    """Yield what is wrong with the values of a tree that no schema looks into.

    Args:
        value: as YAML gives it.
        path: where it stands.
    """
    where = path or "the top level"
    if isinstance(value, dict):
        for key, below in value.items():
            if isinstance(key, str):
                yield from _of_text(key, f"a key of {where}")
                yield from unusable(below, f"{path}.{key}" if path else key)
            else:
                place = f"{path}.{key}" if path else str(key)
                yield f"{place}: got {key!r}; Keys should be strings, in quotes where they look like a number"
    elif isinstance(value, list | tuple):
        for index, below in enumerate(value):
            yield from unusable(below, f"{path}.{index}")
    elif isinstance(value, str):
        yield from _of_text(value, where)
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield f"{where}: got {value}; a finite number is wanted"
    elif isinstance(value, int):
        if abs(value) >= 2**63:
            yield f"{where}: got a number of {value.bit_length()} bits; those of 63 are the longest"
    elif value is not None:
        yield f"{where}: got {value!r}; text, numbers, true and false, lists and mappings of them are allowed"


def mistaken(given: Any, read: Any, path: str = "") -> Iterator[str]:
    """Yield where a value was read as one of another kind: yes is true to YAML, 1e3 a number, and 1 stands for true.

    Args:
        given: a tree as YAML gives it.
        read: the same once it was validated.
        path: where it stands.
    """
    if isinstance(given, dict) and isinstance(read, dict):
        for key in given.keys() & read.keys():
            yield from mistaken(given[key], read[key], f"{path}.{key}" if path else str(key))
    elif isinstance(given, list | tuple) and isinstance(read, list | tuple):
        for index, (one, other) in enumerate(zip(given, read, strict=False)):
            yield from mistaken(one, other, f"{path}.{index}")
    elif isinstance(given, bool) and not isinstance(read, bool):
        yield f"{path}: got {str(given).lower()}; a number is wanted"
    elif isinstance(given, float) and isinstance(read, str):
        yield f"{path}: got the number {given}, and text is wanted; put it in quotes"


def wrong_name(name: str) -> str | None:
    """Say why a name cannot be that of a folder; None where it can."""
    if not name.strip():
        return "it is empty"
    if name.strip(".") == "" or "/" in name or "\\" in name:
        return "it leads to another folder"
    if not name.isprintable():
        return "it has a character that is not printed"
    if name != name.strip() or name.startswith("~"):
        return "it begins or ends with a blank, or begins with ~"
    if len(name.encode()) > _MAX_NAME_BYTES:
        return f"it is longer than {_MAX_NAME_BYTES} bytes"
    return None


def check_name(name: str, what: str) -> str:
    """Return a name that becomes a folder's.

    Args:
        name: as given.
        what: it is the name of.

    Raises:
        ValueError: it leads elsewhere, or cannot be a folder's.
    """
    reason = wrong_name(name)
    if reason is not None:
        raise ValueError(
            f"{what} {name[:60]!r} cannot be a folder's name: {reason}. Use letters, digits, blanks, - _ . + = ,"
        )
    return name


def same_file(names: Iterable[str]) -> tuple[str, str] | None:
    """Return two names whose files would be one, if there are such: only letters, digits and -_. are kept in them."""
    seen: dict[str, str] = {}
    for name in names:
        first = seen.setdefault(re.sub(r"[^\w.-]", "_", name.replace(" ", "-")).replace("-", "_"), name)
        if first != name:
            return first, name
    return None


def _of_text(text: str, where: str) -> Iterator[str]:
    shown = ascii(text[:40])
    if "\0" in text:
        yield f"{where}: got {shown}; a NUL character is in no name, path or text"
    try:
        text.encode()
    except UnicodeEncodeError:
        yield f"{where}: got {shown}; this is not Unicode text"
