"""Rows of a prepared split, read from the disk when they are asked for: nothing of them is held in memory."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mft_ray.data.pieces import ANSWERS
from mft_ray.data.store import open_split
from mft_ray.utils.json_types import JsonObject

_TOKENS = ("input_ids", "labels", "prompt_ids")
_TEXTS = ("id", "answer")


class EncodedRows(Sequence[JsonObject]):
    """Rows of a split, memory-mapped, and slices of them.

    A row has ``input_ids``, ``labels`` and ``prompt_ids`` as arrays of int32, ``id`` and ``answer`` as texts, and
    ``place``, its number in the split.

    Args:
        columns: of the split.
        places: numbers of the rows.
    """

    def __init__(self, columns: Columns, places: range) -> None:
        self._columns, self._places = columns, places

    @classmethod
    def open(cls, folder: Path, split: str) -> EncodedRows:
        """Open a split that `mft_ray.data.store.prepare` saved.

        Raises:
            UserError: there is no such split.
            Damaged: it cannot be read.
        """
        table = open_split(folder, split).data.table
        return cls(Columns(table), range(table.num_rows))

    def __len__(self) -> int:
        """Count the rows."""
        return len(self._places)

    @overload
    def __getitem__(self, at: int) -> JsonObject: ...

    @overload
    def __getitem__(self, at: slice) -> EncodedRows: ...

    def __getitem__(self, at: int | slice) -> JsonObject | EncodedRows:
        """Read a row, or take some."""
        if isinstance(at, slice):
            return EncodedRows(self._columns, self._places[at])
        place = self._places[at]
        return {**self._columns.row(place), "place": place}

    def lengths(self, column: str = "input_ids") -> list[int]:
        """Return the tokens of each row in a column, without reading any."""
        found: list[int] = self._columns.lengths(column)[self._places].tolist()
        return found

    def answer_lengths(self) -> list[int]:
        """Return how many tokens of each row are learned."""
        found: list[int] = self._columns.answers()[self._places].tolist()
        return found


def lengths_of(rows: Sequence[Mapping[str, Any]], column: str) -> list[int]:
    """Return the tokens of each row in a column, without reading rows of a split.

    Args:
        rows: rows of a split, or others in memory.
        column: name of the column.
    """
    return rows.lengths(column) if isinstance(rows, EncodedRows) else [len(row[column]) for row in rows]


class Columns:
    """Columns of a table whose chunks lie on the disk.

    Args:
        table: of a split.
    """

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self._batches = table.to_batches()
        ends = np.cumsum([len(batch) for batch in self._batches])
        self._starts: list[int] = [0, *ends.tolist()]
        # For each batch and column: where each row begins, and all tokens; both are views of the file.
        self._tokens: list[dict[str, tuple[NDArray[Any], NDArray[Any]]]] = [
            {name: _view(batch.column(name)) for name in _TOKENS} for batch in self._batches
        ]

    def row(self, place: int) -> dict[str, Any]:
        """Read a row."""
        number = bisect.bisect_right(self._starts, place) - 1
        at = place - self._starts[number]
        found: dict[str, Any] = {name: self._batches[number].column(name)[at].as_py() for name in _TEXTS}
        for name, (starts, tokens) in self._tokens[number].items():
            found[name] = tokens[starts[at] : starts[at + 1]]
        return found

    def lengths(self, column: str) -> NDArray[Any]:
        """Return the tokens of each row."""
        return np.concatenate([np.zeros(0, np.int64), *(np.diff(each[column][0]) for each in self._tokens)])

    def answers(self) -> NDArray[Any]:
        """Return how many tokens of each row are learned."""
        return np.asarray(self._table.column(ANSWERS).to_numpy())


def _view(lists: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    return lists.offsets.to_numpy(), lists.values.to_numpy()
