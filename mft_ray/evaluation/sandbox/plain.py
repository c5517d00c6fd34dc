"""Values as JSON and back, with no way to name anything but values. It imports nothing of ours: it runs in the jail."""

from __future__ import annotations

import sys
from collections.abc import Callable, ItemsView, Iterator, KeysView, ValuesView
from decimal import Decimal
from fractions import Fraction
from typing import Any

_DEPTH = 200
_ITEMS = 2_000_000  # of an iterator, which may have no end


class NotPlain(TypeError):
    """A value that is no plain data."""


def encoded(value: Any, depth: int = 0) -> Any:
    """Return a value as JSON has it. One of a subclass of a plain type is one of that type.

    Args:
        value: None, a number, a text, bytes, a list, tuple, set, dict, range, or an iterator over such; or numpy's.
        depth: depth of what it is in.

    Raises:
        NotPlain: it is something else, or too deep.
    """
    if depth > _DEPTH:
        raise NotPlain("something too deep")
    if value is None or value is True or value is False:
        return value
    for kind, tag, write in _SCALARS:
        if isinstance(value, kind):
            return [tag, *write(value)]
    for kind, tag in _COLLECTIONS:
        if isinstance(value, kind):
            return [tag, [encoded(item, depth + 1) for item in kind.__iter__(value)]]
    if isinstance(value, dict):
        return ["d", [[encoded(key, depth + 1), encoded(dict.get(value, key), depth + 1)] for key in dict.keys(value)]]
    for view, tag in _VIEWS:
        if isinstance(value, view):
            return [tag, [encoded(item, depth + 1) for item in _items(iter(value))]]
    if (numpy := sys.modules.get("numpy")) is not None:
        if isinstance(value, numpy.ndarray) and value.dtype.kind in "biufcUS":
            return ["a", value.dtype.str, list(value.shape), encoded(value.ravel().tolist(), depth + 1)]
        if isinstance(value, numpy.generic) and value.dtype.kind in "biufcUS":
            return encoded(value.item(), depth + 1)
    raise NotPlain(f"a value of type {type(value).__name__}, which is no plain data")


def decoded(content: Any) -> Any:
    """Return the value that `encoded` made JSON of.

    Raises:
        ValueError: it made no such thing.
        TypeError: the same.
    """
    if content is None or content is True or content is False:
        return content
    if not isinstance(content, list) or not content or not isinstance(content[0], str):
        raise ValueError("no value")
    tag, *parts = content
    if tag == "a":
        dtype, shape, items = parts
        return sys.modules["numpy"].array(decoded(items), dtype=_of_numbers_or_text(dtype)).reshape(shape)
    if tag == "d":
        return {decoded(key): decoded(value) for key, value in parts[0]}
    if tag in _MAKE:
        return _MAKE[tag]([decoded(item) for item in parts[0]])
    return _READ[tag](*parts)


def change(value: Any, became: Any) -> None:
    """Give a list, dict, set or bytearray the content of another one: what a call has made of its argument."""
    if type(value) is not type(became):
        return
    if isinstance(value, (list, bytearray)):
        value[:] = became
    elif isinstance(value, (dict, set)):
        value.clear()
        value.update(became)


def _of_numbers_or_text(dtype: str) -> str:
    if not isinstance(dtype, str) or dtype[1:2] not in tuple("biufcUS"):
        raise ValueError("no type of numbers or text")
    return dtype


def _items(iterator: Iterator[Any]) -> Iterator[Any]:
    for count, item in enumerate(iterator):
        if count >= _ITEMS:
            raise NotPlain(f"an iterator over more than {_ITEMS:,} items")
        yield item


_SCALARS: tuple[tuple[type, str, Callable[[Any], list[Any]]], ...] = (
    (int, "i", lambda value: [format(int(value), "x")]),  # no limit on digits
    (float, "f", lambda value: [float.hex(float(value))]),
    (complex, "c", lambda value: [float.hex(complex(value).real), float.hex(complex(value).imag)]),
    (str, "s", lambda value: [str.__str__(value)]),
    (bytes, "b", lambda value: [bytes.hex(value)]),
    (bytearray, "B", lambda value: [bytearray.hex(value)]),
    (range, "r", lambda value: [format(each, "x") for each in (value.start, value.stop, value.step)]),
    (Decimal, "D", lambda value: [str(value)]),
    (Fraction, "Q", lambda value: [format(value.numerator, "x"), format(value.denominator, "x")]),
)
_READ: dict[str, Callable[..., Any]] = {
    "i": lambda text: int(text, 16),
    "f": float.fromhex,
    "c": lambda real, imaginary: complex(float.fromhex(real), float.fromhex(imaginary)),
    "s": lambda text: str(text),
    "b": bytes.fromhex,
    "B": bytearray.fromhex,
    "r": lambda *each: range(*(int(text, 16) for text in each)),
    "D": Decimal,
    "Q": lambda *each: Fraction(*(int(text, 16) for text in each)),
}
_COLLECTIONS: tuple[tuple[Any, str], ...] = ((list, "l"), (tuple, "t"), (set, "S"), (frozenset, "F"))
_VIEWS: tuple[tuple[Any, str], ...] = ((KeysView, "K"), (ItemsView, "I"), (ValuesView, "V"), (Iterator, "g"))
_MAKE: dict[str, Callable[[list[Any]], Any]] = {
    "l": list,
    "t": tuple,
    "S": set,
    "F": frozenset,
    "K": lambda items: dict.fromkeys(items).keys(),
    "I": lambda items: dict(items).items(),
    "V": lambda items: dict(enumerate(items)).values(),
    "g": iter,
}
