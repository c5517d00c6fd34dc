"""Local files row by row, each with its line: nothing is guessed from other rows, and no file is held whole."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TextIO, TypeVar

from mft_ray.data.rows.values import DECODER, LeftOut, kind, loads
from mft_ray.utils.json_types import JsonObject

FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")  # .ndjson is .jsonl; text may be compressed
_ALIASES = {".ndjson": ".jsonl"}
_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
# The longer marks first: the mark of UTF-32 begins with that of UTF-16.
_MARKS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_SPACE = re.compile(r"[ \t\n\r]*")
_CHUNK = 1 << 20  # characters
_BATCH = 256  # rows of a Parquet file in memory

T = TypeVar("T")
Numbered = tuple[int, JsonObject | LeftOut]


def format_of(path: Path) -> str | None:
    """Return the format of a file by its name, one of `FORMATS`; None if it is none of them."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _OPENERS:
        suffixes.pop()
        if suffixes and suffixes[-1] == ".parquet":
            return None
    last = _ALIASES.get(suffixes[-1], suffixes[-1]) if suffixes else ""
    return last if last in FORMATS else None


def unit(path: Path) -> str:
    """Return what the numbers of a file's rows count."""
    return "row" if format_of(path) == ".parquet" else "line"


def rows(path: Path, wanted: Collection[str] | None = None) -> Iterator[Numbered]:
    """Read a file of one of `FORMATS`.

    Args:
        path: the file.
        wanted: columns of a Parquet file whose values matter; others are None. None reads all.

    Yields:
        The line that a row begins on (of Parquet its number), from 1, and the row, or why it is none. Numbers of
        JSON are `Number`, what CSV holds is text.

    Raises:
        ValueError: the file is broken, with the line.
        OSError: it cannot be read.
        EOFError: a compressed file ends too early.
    """
    return _explained(path, _rows(path, wanted))


def _rows(path: Path, wanted: Collection[str] | None) -> Iterator[Numbered]:
    form = format_of(path)
    if form == ".parquet":
        yield from _parquet_rows(path, wanted)
    elif form in (".csv", ".tsv"):
        yield from _csv_rows(path, "\t" if form == ".tsv" else None)
    elif form == ".jsonl" and _first_character(path) != "[":
        yield from _json_lines(path)
    else:
        yield from _json_values(path)


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text file that are not blank, numbered from 1.

    Lines end at a newline and nowhere else: not at the separators U+2028 and U+0085, which may stand inside a JSON
    string. A byte order mark is no part of the first line.

    Raises:
        ValueError: it is no text, with the line.
        OSError: it cannot be read.
    """
    return _explained(path, _text_lines(path))


def _text_lines(path: Path) -> Iterator[tuple[int, str]]:
    with _opened(path, newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line


def _json_lines(path: Path) -> Iterator[Numbered]:
    for number, line in _text_lines(path):
        try:
            value = loads(line)
        except ValueError as error:
            reason = getattr(error, "msg", error)
            raise ValueError(f"line {number} is not JSON: {reason}") from None
        yield number, _object(value)


def _object(value: Any) -> JsonObject | LeftOut:
    return value if isinstance(value, dict) else LeftOut(f"it is {kind(value)}, not an object")


def _json_values(path: Path) -> Iterator[Numbered]:
    """Yield the elements of a JSON list, or values that follow each other."""
    with _opened(path, newline="\n") as file:
        text = _Stream(file)
        listed = text.peek() == "["
        if listed:
            text.skip()
        while text.peek() not in ("", "]" if listed else ""):
            line = text.line
            yield line, _object(text.value())
            if listed and text.peek() == ",":
                text.skip()
                if text.peek() == "]":
                    raise ValueError(f"line {text.line} is not JSON: nothing follows a comma")
            elif listed and text.peek() != "]":
                raise ValueError(f"line {text.line} is not JSON: , or ] is missing")
        if listed and text.peek() != "]":
            raise ValueError(f"line {text.line} is not JSON: the list does not end")
        if listed:
            text.skip()
            if text.peek():
                raise ValueError(f"line {text.line} is not JSON: something follows the list")


class _Stream:
    """JSON values of a text stream, of which only the one at hand is in memory."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text, self._at, self._ended = "", 0, False
        self.line = 1

    def peek(self) -> str:
        """Return the next character that is no white space; nothing at the end."""
        while True:
            self._move(_SPACE.match(self._text, self._at).end())  # type: ignore[union-attr]
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._more()

    def skip(self) -> None:
        """Go on by one character."""
        self._move(self._at + 1)

    def value(self) -> Any:
        """Return the value that begins here."""
        while True:
            try:
                found, end = DECODER.raw_decode(self._text, self._at)
            except RecursionError:
                raise ValueError(f"line {self.line} is not JSON: nested too deeply") from None
            except ValueError as error:
                if self._ended:
                    at = min(getattr(error, "pos", self._at), len(self._text))
                    line = self.line + self._text.count("\n", self._at, at)
                    raise ValueError(f"line {line} is not JSON: {getattr(error, 'msg', error)}") from None
            else:
                if end < len(self._text) or self._ended:  # else a number might go on
                    self._move(end)
                    return found
            self._more()

    def _move(self, to: int) -> None:
        self.line += self._text.count("\n", self._at, to)
        self._at = to

    def _more(self) -> None:
        rest = self._text[self._at :]
        # As much again as there is: a long value is tried a few times only.
        chunk = self._file.read(max(_CHUNK, len(rest)))
        self._text, self._at, self._ended = rest + chunk, 0, not chunk


def _csv_rows(path: Path, delimiter: str | None) -> Iterator[Numbered]:
    csv.field_size_limit((1 << 31) - 1)  # the default, 128 KB, is less than a long conversation
    with _opened(path, newline="") as file:
        reader = csv.reader(file, delimiter=delimiter or _delimiter(path), strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            if twice := sorted({name for name in header if name and header.count(name) > 1}):
                raise ValueError(f"line 1 names a column twice: {', '.join(twice)}")
            begins = reader.line_num + 1
            for cells in reader:
                if len(cells) > len(header):
                    yield begins, LeftOut("it has more cells than the first line has columns")
                elif cells:
                    yield begins, dict(zip(header, cells, strict=False))
                begins = reader.line_num + 1
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num} is not {'TSV' if delimiter else 'CSV'}: {error}") from None


def _delimiter(path: Path) -> str:
    """Return a comma, or what spreadsheets write instead if the first line has none."""
    header = next(_text_lines(path), (0, ""))[1]
    return next((sign for sign in (",", ";", "\t") if sign in header), ",")


def _parquet_rows(path: Path, wanted: Collection[str] | None) -> Iterator[Numbered]:
    # Imported late: a file of JSON needs none of it.
    import pyarrow
    import pyarrow.parquet

    try:
        # Opened here: a path's name means nothing but itself.
        with path.open("rb") as opened, pyarrow.parquet.ParquetFile(opened) as file:
            names = file.schema_arrow.names
            columns = None if wanted is None else [name for name in names if name in wanted]
            number = 0
            for batch in file.iter_batches(_BATCH, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield number, dict.fromkeys(names) | {name: without_filled(value) for name, value in row.items()}
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from None


def without_filled(value: Any) -> Any:
    """Leave out the keys that a typed column fills with null in objects that do not have them."""
    if isinstance(value, dict):
        return {key: without_filled(one) for key, one in value.items() if one is not None}
    return [without_filled(one) for one in value] if isinstance(value, list) else value


@contextmanager
def _opened(path: Path, newline: str) -> Iterator[TextIO]:
    with _bytes(path) as binary:
        begin = binary.read(4)
    encoding = next((encoding for mark, encoding in _MARKS if begin.startswith(mark)), "utf-8-sig")
    with _bytes(path) as binary, io.TextIOWrapper(binary, encoding=encoding, newline=newline) as text:
        yield text


def _bytes(path: Path) -> IO[bytes]:
    opened: IO[bytes] = _OPENERS.get(path.suffix.lower(), open)(path, "rb")
    return opened


def _first_character(path: Path) -> str:
    with _opened(path, newline="\n") as file:
        return _Stream(file).peek()


def _explained(path: Path, read: Iterator[T]) -> Iterator[T]:
    """Say on which line text is not text."""
    try:
        yield from read
    except UnicodeDecodeError as error:
        raise ValueError(f"{_undecodable(path, error.encoding)} is not {error.encoding.upper()} text") from None
    except (lzma.LZMAError, zlib.error) as error:
        raise ValueError(str(error)) from None


def _undecodable(path: Path, encoding: str) -> str:
    if encoding == "utf-8":
        with _bytes(path) as binary:
            for number, line in enumerate(binary, start=1):
                try:
                    line.decode()
                except UnicodeDecodeError:
                    return f"line {number}"
    return "it"
