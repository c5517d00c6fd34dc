"""Values of a row: numbers as they were written, text that is text, JSON inside text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

_MOST_NESTED = 64  # levels of a tool's schema or arguments; templates walk them recursively


class LeftOut(Exception):
    """A row that cannot be used. The reason names no value of the row, so that rows can be counted by it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Number(str):
    """A number of a JSON file, as the digits that were written there."""

    __slots__ = ()


# Raw tabs and the like in strings are no valid JSON, but what they mean is clear.
DECODER = json.JSONDecoder(parse_int=Number, parse_float=Number, strict=False)


def loads(text: str) -> Any:
    """Parse JSON, its numbers as `Number`.

    Raises:
        ValueError: it is no JSON, or nested too deeply.
    """
    try:
        return DECODER.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def as_text(value: Any, what: str, empty: bool = False) -> str:
    """Return a value as text: what was written, for numbers and dates too.

    Args:
        value: value of a row.
        what: name of the value in reasons.
        empty: whether text of nothing but white space will do.

    Raises:
        LeftOut: it is neither text nor a number, or empty.
    """
    text = _written(value, what)
    if not empty and not text.strip():
        raise LeftOut(f"{what} is empty")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise LeftOut(f"{what} has half of a surrogate pair, which is no character") from None
    return text


def _written(value: Any, what: str) -> str:
    if isinstance(value, str):
        return str(value)
    if value is None:
        raise LeftOut(f"{what} is null")
    if isinstance(value, float) and not math.isfinite(value):
        raise LeftOut(f"{what} is NaN or infinite")
    # Of typed columns, as Parquet's. bool is an int to Python.
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, (int, float, date, datetime, time)) and not isinstance(value, bool):
        return str(value)
    raise LeftOut(f"{what} is {kind(value)}, not text")


def kind(value: Any) -> str:
    """Return what a value is, in JSON's words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (Number, int, float, Decimal)):
        return "a number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, (list, tuple)):
        return "a list"
    return "an object" if isinstance(value, Mapping) else f"of the type {type(value).__name__}"


def as_json(value: Any, what: str) -> Any:
    """Return a value that is JSON, or text that holds JSON, with numbers that are numbers.

    Args:
        value: value of a row.
        what: name of the value in reasons.

    Raises:
        LeftOut: it is text that is no JSON, or nested too deeply.
    """
    if isinstance(value, str) and not isinstance(value, Number):
        try:
            value = loads(value)
        except ValueError:
            raise LeftOut(f"{what} is text that is not JSON") from None
    return _plain(value, what, _MOST_NESTED)


def _plain(value: Any, what: str, levels: int) -> Any:
    if not levels:
        raise LeftOut(f"{what} is nested more than {_MOST_NESTED} levels deep")
    if isinstance(value, Mapping):
        return {_plain(str(key), what, levels): _plain(one, what, levels - 1) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one, what, levels - 1) for one in value]
    if isinstance(value, Number):
        return _number(value)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, (int, float)) and math.isfinite(value):
        return value
    return as_text(value, what, empty=True)


def _number(written: Number) -> int | float | str:
    """Return what was written as a number, or as text if no number of Python's can hold it."""
    try:
        return int(written)
    except ValueError:
        found = float(written) if len(written) < 400 else math.inf
        return found if math.isfinite(found) else str(written)
