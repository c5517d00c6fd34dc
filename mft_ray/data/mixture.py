"""Where training examples come from: one source, a mixture of the user's, or a domain's recipe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mft_ray.config import DataConfig, PartConfig
from mft_ray.data.accounting import NOT_DRAWN, SourceCounts
from mft_ray.data.examples import Example
from mft_ray.data.rows.formats import (
    CONVERSATIONAL,
    FORMS,
    WHOLE,
    beside,
    conversation,
    find_columns,
    known_form,
    shown,
)
from mft_ray.data.rows.reading import Source, locate, read
from mft_ray.data.rows.trees import Node, node, paths
from mft_ray.data.rows.values import LeftOut, as_text
from mft_ray.domains import TREE
from mft_ray.errors import UserError
from mft_ray.utils.json_types import JsonObject

_MOST_COLUMNS = 1000  # that are remembered for messages


@dataclass(frozen=True)
class Located:
    """A source of examples, of which nothing has been read yet.

    Attributes:
        source: where the rows are.
        setting: what names it in the configuration.
        columns: what its rows are read by, see `formats.conversations`; None finds out.
        advice: how other columns are named.
        rows: the first so many; None takes all.
        made_from: column that says what an example was made from, if there is one.
        ignored: columns that are not to be used, whatever their names say.
        forms: columns that are looked for where none are named.
    """

    source: Source
    setting: str
    columns: tuple[str, ...] | None
    advice: str
    rows: int | None = None
    made_from: str | None = None
    ignored: tuple[str, ...] = ()
    forms: tuple[tuple[str, ...], ...] = FORMS

    def counts(self) -> SourceCounts:
        """Return counts for its rows, all 0."""
        return SourceCounts(self.setting, str(self.source), self.source.path, self.source.split)

    def __str__(self) -> str:
        """How messages call it."""
        return f"{self.setting} ({self.source})"


def locate_training(config: DataConfig) -> list[Located]:
    """Find what training, validation and perhaps test examples are drawn from.

    Raises:
        UserError: nothing is given, a local file is missing, or its format is unknown.
    """
    if config.mixture:
        return [_given(part, f"data.mixture[{index}]") for index, part in enumerate(config.mixture)]
    if config.train is not None:
        return [_single(config, config.train, "data.train", "train")]
    if config.domain is not None:
        setting = f"A part of the {config.task} recipe"
        advice = "Give data.mixture with parts whose columns are as they are now."
        parts = config.domain.parts
        return [Located(locate(part.hub, setting, "train"), setting, part.columns, advice, part.rows) for part in parts]
    others = "" if config.task == "gsm8k" else " Or mix several with data.mixture."
    raise UserError(
        f"data.train is not given, and the {config.task} task needs it: a .jsonl, .json, .csv or "
        f".parquet file, or the id of a hub dataset such as openai/gsm8k:main.{others}"
    )


def locate_test(config: DataConfig) -> Located | None:
    """Find where the test split comes from; None where it is held out of the training data.

    Raises:
        UserError: a local file is missing, or its format is unknown.
    """
    return None if config.test is None else _single(config, config.test, "data.test", "test")


def examples_of(part: Located, counts: SourceCounts) -> Iterator[Example]:
    """Yield the examples of a source; rows that cannot be used are left out and counted by reason.

    The first ``rows`` are counted in the source's order before anything is left out; of message trees, whose rows
    are single messages, they are conversations. The reference code counts so.

    Args:
        part: the source.
        counts: counts of its rows, which are filled.

    Raises:
        UserError: it cannot be read, no row of it can be used, or a row says what is not known.
    """
    reader = _Reader(part, counts)
    yield from reader.examples()


class _Reader:
    """Reads one source, whose columns it finds out as rows come."""

    def __init__(self, part: Located, counts: SourceCounts) -> None:
        self._part, self._counts = part, counts
        self._columns = part.columns
        self._present: dict[str, None] = {}  # columns of all rows so far, in order
        self._ignored = frozenset(part.ignored)
        self._wanted = CONVERSATIONAL | set(TREE) | {"labels", "deleted"} | set(part.columns or ())
        if part.made_from is not None:
            self._wanted |= {part.made_from}

    def examples(self) -> Iterator[Example]:
        part, counts, any_used = self._part, self._counts, False
        for index, place, row in self._rows(part.rows):
            if self._columns is None:
                self._columns = known_form(row.keys() - self._ignored, part.forms)
                if self._columns is None:
                    counts.leave_out("it has no columns of a known form", index)
                    continue
            if self._columns == TREE:
                break
            example = self._example(index, place, row)
            if example is not None:
                any_used = True
                yield example
        if self._columns == TREE:
            for example in self._trees():
                any_used = True
                yield example
        self._tell_columns()
        self._check_columns(any_used)

    def _rows(self, first: int | None) -> Iterator[tuple[int, str, JsonObject]]:
        for where, number, row in read(self._part.source, self._part.setting, first, self._wanted):
            index = self._counts.read(where, number)
            if isinstance(row, LeftOut):
                self._counts.leave_out(row.reason, index)
                continue
            if not row.keys() <= self._present.keys():
                new = row if len(self._present) < _MOST_COLUMNS else row.keys() & self._wanted
                self._present.update(dict.fromkeys(new))
            yield index, f"{where} {number}", row

    def _example(self, index: int, place: str, row: JsonObject) -> Example | None:
        columns, part = self._columns or (), self._part
        notes: dict[str, None] = {}
        try:
            extra = beside(columns, row.keys() - self._ignored)
            found = conversation(row, columns, extra, f"{part.setting}: {place}", lambda note: notes.setdefault(note))
            source = self._made_from(row)
        except LeftOut as left_out:
            self._counts.leave_out(left_out.reason, index)
            return None
        except RecursionError:
            self._counts.leave_out("a value is nested too deeply", index)
            return None
        self._counts.also_used += [
            name for name in extra if row[name] not in (None, "", []) and name not in self._counts.also_used
        ]
        for note in notes:
            self._counts.altered.add(note, place)
        return Example(f"{part.source}:{index}", found.messages, source=source, tools=found.tools)

    def _made_from(self, row: JsonObject) -> str | None:
        column = self._part.made_from
        return None if column is None or row.get(column) is None else as_text(row[column], column, empty=True) or None

    def _trees(self) -> Iterator[Example]:
        part, counts, found = self._part, self._counts, 0
        counts.forget()
        nodes: list[Node] = []
        for index, place, row in self._rows(None):
            try:
                nodes.append(node(row, index, f"{part.setting}: {place}"))
            except LeftOut as left_out:
                counts.leave_out(left_out.reason, index)
        placed: set[int] = set()
        for path in paths(nodes):
            placed.update(path.indices)
            root, *others = path.indices
            if path.reason is None and (part.rows is None or found < part.rows):
                found += 1
                counts.joined += len(others)
                yield Example(f"{part.source}:{root}", path.messages)
            else:
                for index in path.indices:
                    counts.leave_out(path.reason or NOT_DRAWN, index)
        for one in nodes:
            if one.index not in placed:
                counts.leave_out("it is not on the best path of a tree", one.index)

    def _tell_columns(self) -> None:
        counts, columns, present = self._counts, self._columns, self._present
        counts.columns = list(columns or ())
        if columns is not None and columns != TREE:
            used = {*columns, *counts.also_used, *beside(columns, present.keys() - self._ignored)}
            counts.not_used = [name for name in present if name in CONVERSATIONAL - used - self._ignored]

    def _check_columns(self, any_used: bool) -> None:
        """Refuse a source of which no row can be used, and one that has not a column that was named."""
        part, counts, present = self._part, self._counts, list(self._present)
        if not counts.rows_read:
            return
        named = list(part.columns or (part.forms[0] if part.forms is WHOLE and self._columns is None else ()))
        named += [] if part.made_from is None else [part.made_from]
        missing = [column for column in named if column not in self._present] if present else []
        if missing:
            raise UserError(
                f"{part} has no column {' and no column '.join(map(repr, missing))}; its columns are "
                f"{shown(present)}. {part.advice}{_suggested(present)}"
            )
        if any_used:
            return
        if present and self._columns is None:
            find_columns(present, str(part), part.advice)
        raise UserError(
            f"{part} has no row that can be used. Its columns are {shown(present)}, of which "
            f"{' and '.join(self._columns or ('none',))} {'are' if len(self._columns or ()) > 1 else 'is'} read; of "
            f"its {counts.rows_read:,} rows: {counts.left_out.described()}. {part.advice}"
        )


def _suggested(present: Sequence[str]) -> str:
    """Say which setting fits rows that have the columns of another form."""
    columns = known_form(present)
    if columns is None or columns == TREE:
        return ""
    if len(columns) == 1:
        return f" They would be read with messages_column {columns[0]}."
    return f" They would be read with prompt_column {columns[0]} and answer_column {columns[1]}."


def _given(part: PartConfig, setting: str) -> Located:
    columns = _named(part, setting)
    advice = f"Set messages_column, or prompt_column and answer_column, in {setting} to columns that it has."
    source = locate(part.path, f"{setting}.path", "train")
    return Located(source, setting, columns, advice, part.rows, ignored=tuple(part.ignore_columns))


def _single(config: DataConfig, path: str, setting: str, split: str) -> Located:
    advice = "Set data.messages_column, or data.prompt_column and data.answer_column, to columns that it has."
    if config.task == "gsm8k":
        columns: tuple[str, ...] | None = ("question", "answer")
        advice = "The gsm8k task reads question and answer; for other columns use data.task chat."
    else:
        columns = _named(config, "data")
    forms = WHOLE if config.task == "chat" else FORMS
    ignored = tuple(config.ignore_columns)
    return Located(locate(path, setting, split), setting, columns, advice, None, config.source_column, ignored, forms)


def _named(given: DataConfig | PartConfig, setting: str) -> tuple[str, ...] | None:
    """Return the columns that the user names: a prompt's and an answer's, or a conversation's."""
    if (given.prompt_column is None) != (given.answer_column is None):
        raise UserError(
            f"{setting}.prompt_column is {given.prompt_column!r} and {setting}.answer_column is "
            f"{given.answer_column!r}: give both, or neither for rows that hold a whole conversation in "
            f"{setting}.messages_column."
        )
    if given.prompt_column is not None and given.answer_column is not None:
        return (given.prompt_column, given.answer_column)
    return None if given.messages_column is None else (given.messages_column,)
