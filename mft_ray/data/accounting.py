"""What became of the rows: read, used, left out and why. Printed, and kept as ``data.json``."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mft_ray.utils.files import write_json
from mft_ray.utils.json_types import JsonObject

SCHEMA = 1
_FIRST = 5  # places that are kept of each reason

DUPLICATE = "it has the prompt and the answer of an earlier row"
SAME_PROMPT = "it has the prompt of an earlier row, with another answer"
IN_TEST = "the test data has its prompt"
NOT_DRAWN = "not drawn: the splits have as many as they were to have"


@dataclass
class Reason:
    """Rows that share a reason.

    Attributes:
        rows: how many.
        first: places of the first few, such as ``train.jsonl, line 3``.
    """

    rows: int = 0
    first: list[str] = field(default_factory=list)


class Tally:
    """Rows by reason, in the order in which the reasons came up."""

    def __init__(self) -> None:
        self.reasons: dict[str, Reason] = {}

    def add(self, reason: str, place: str | None = None, rows: int = 1) -> None:
        """Count a row.

        Args:
            reason: words that are the same for all rows of a kind.
            place: file and line of the row, if it can be told.
            rows: number of rows, if several.
        """
        found = self.reasons.setdefault(reason, Reason())
        found.rows += rows
        if place is not None and len(found.first) < _FIRST:
            found.first.append(place)

    @property
    def rows(self) -> int:
        """Number of rows in all."""
        return sum(reason.rows for reason in self.reasons.values())

    def merge(self, other: list[JsonObject], place_of: Callable[[str], str | None]) -> None:
        """Add rows that were counted elsewhere, after these.

        Args:
            other: what `content` says of them.
            place_of: what their places are called here.
        """
        for each in other:
            found = self.reasons.setdefault(each["reason"], Reason())
            found.rows += each["rows"]
            places = [place for place in map(place_of, each["first"]) if place is not None]
            found.first += places[: _FIRST - len(found.first)]

    def __getitem__(self, reason: str) -> int:
        """Number of rows of one reason."""
        return self.reasons[reason].rows if reason in self.reasons else 0

    def described(self, but: str | None = None) -> str:
        """Return reasons, numbers and first places in words.

        Args:
            but: a reason that is not worth a word.
        """
        return "; ".join(_described(reason, found) for reason, found in self.reasons.items() if reason != but)

    def content(self) -> list[JsonObject]:
        """Return what ``data.json`` holds."""
        return [{"reason": name, "rows": found.rows, "first": found.first} for name, found in self.reasons.items()]


def _described(reason: str, found: Reason) -> str:
    if not found.first:
        return f"{reason} ({found.rows:,})"
    more = ", ..." if found.rows > len(found.first) else ""
    return f"{reason} ({found.rows:,}: {_joined(found.first)}{more})"


def _joined(places: list[str]) -> str:
    """Return places with the file named once for its lines that follow each other."""
    parts: list[str] = []
    before = ""
    for place in places:
        lead, _, number = place.rpartition(" ")
        parts.append(number if lead == before else place)
        before = lead
    return ", ".join(parts)


class SourceCounts:
    """The rows of one file, folder or hub dataset.

    Every row that was read is used, is part of another row's conversation (`joined`, in message trees), or is left
    out for one reason.

    Args:
        setting: setting that names the source.
        name: name of the source in messages.
        source: path or hub id.
        split: split of a folder or hub dataset.
    """

    def __init__(self, setting: str, name: str, source: str, split: str | None = None) -> None:
        self.setting, self.name, self.source, self.split = setting, name, source, split
        self.columns: list[str] = []  # what prompt and answer are read from
        self.also_used: list[str] = []  # columns that belong to the prompt as well
        self.not_used: list[str] = []  # columns that look as if they did
        self.used = 0
        self.forget()

    def forget(self) -> None:
        """Begin anew: the source will be read again."""
        self.rows_read = self.joined = 0
        self.left_out, self.altered = Tally(), Tally()
        self._lines = array("Q")
        self._begins: list[int] = []
        self._where: list[str] = []

    def read(self, where: str, number: int) -> int:
        """Count a row that was read, and return its index.

        Args:
            where: file and unit, such as ``train.jsonl, line``.
            number: line or row of the file.
        """
        if not self._where or self._where[-1] != where:
            self._begins.append(self.rows_read)
            self._where.append(where)
        self._lines.append(number)
        self.rows_read += 1
        return self.rows_read - 1

    def place(self, index: int) -> str:
        """Return file and line of a row by its index."""
        return f"{self._where[bisect_right(self._begins, index) - 1]} {self._lines[index]}"

    def place_of(self, example_id: str) -> str:
        """Return file and line of the row that an example was read from."""
        return self.place(int(example_id.rpartition(":")[2]))

    def leave_out(self, reason: str, index: int) -> None:
        """Count a row that is not used."""
        self.left_out.add(reason, self.place(index))

    @property
    def duplicates(self) -> int:
        """Number of rows left out because an earlier one has their prompt."""
        return self.left_out[DUPLICATE] + self.left_out[SAME_PROMPT]

    def described(self) -> list[str]:
        """Return a sentence for each thing that a user should know of the source."""
        told = []
        if left_out := self.left_out.rows - self.left_out[NOT_DRAWN]:
            why = self.left_out.described(but=NOT_DRAWN)
            told.append(f"{left_out:,} of {self.rows_read:,} rows of {self.name} are left out: {why}")
        if self.altered.reasons:
            told.append(
                f"Rows of {self.name} that are read otherwise than they stand there: {self.altered.described()}"
            )
        if self.also_used:
            told.append(
                f"{self.name}: part of the prompt besides {', '.join(self.columns)}: {', '.join(self.also_used)}"
            )
        if self.not_used:
            told.append(
                f"{self.name}: the columns {', '.join(self.not_used)} look like part of a conversation and are not used"
            )
        return told

    def content(self) -> JsonObject:
        """Return what ``data.json`` holds."""
        return {
            "setting": self.setting,
            "source": self.source,
            "split": self.split,
            "columns": self.columns,
            "also_used": self.also_used,
            "not_used": self.not_used,
            "rows_read": self.rows_read,
            "used": self.used,
            "joined": self.joined,
            "duplicates": self.duplicates,
            "left_out": self.left_out.content(),
            "altered": self.altered.content(),
        }


@dataclass
class SplitCounts:
    """The examples of one split, as they are encoded.

    Attributes:
        examples: drawn for the split.
        place_of: file and line of an example by its id, if it was read.
        used: examples that were encoded.
        rows: what they became: several where a conversation had to be split.
        left_out: the others, by reason.
        altered: examples that were used, but not as they stand in the file, by what was done.
        tokens: tokens of the examples that are used.
        answer_tokens: those of them that have a label.
        cut: examples cut at ``data.max_length``.
        shortest: tokens of the shortest prompt that leaves no room for its answer, if there is one.
        refusal: first conversation that the chat template does not take, and why, if there is one.
    """

    examples: int = 0
    place_of: Callable[[str], str | None] = lambda _: None
    used: int = 0
    rows: int = 0
    left_out: Tally = field(default_factory=Tally)
    altered: Tally = field(default_factory=Tally)
    tokens: int = 0
    answer_tokens: int = 0
    cut: int = 0
    shortest: int | None = None
    refusal: str | None = None

    def leave_out(self, reason: str, example_id: str) -> None:
        """Count an example that is not used."""
        self.left_out.add(reason, self.place_of(example_id))

    def alter(self, what: str, example_id: str) -> None:
        """Count an example that is used, but not as it stands in the file."""
        self.altered.add(what, self.place_of(example_id))

    def of_part(self) -> JsonObject:
        """Return what `add_part` takes: all that was counted."""
        return {**self.content(), "shortest": self.shortest, "refusal": self.refusal}

    def add_part(self, part: JsonObject) -> None:
        """Add what was counted of the next examples of the split, by another process.

        Args:
            part: what `of_part` said there, where examples had no places but their ids.
        """
        for name in ("used", "rows", "tokens", "answer_tokens", "cut"):
            setattr(self, name, getattr(self, name) + part[name])
        self.left_out.merge(part["left_out"], self.place_of)
        self.altered.merge(part["altered"], self.place_of)
        shortest = [each for each in (self.shortest, part["shortest"]) if each is not None]
        self.shortest = min(shortest, default=None)
        self.refusal = self.refusal or part["refusal"]

    def content(self) -> JsonObject:
        """Return what ``data.json`` holds."""
        return {
            "examples": self.examples,
            "used": self.used,
            "rows": self.rows,
            "tokens": self.tokens,
            "answer_tokens": self.answer_tokens,
            "cut": self.cut,
            "left_out": self.left_out.content(),
            "altered": self.altered.content(),
        }


class Accounting:
    """What became of all rows of a run's data."""

    def __init__(self) -> None:
        self.sources: list[SourceCounts] = []
        self.splits: dict[str, SplitCounts] = {}

    def source(self, counts: SourceCounts) -> SourceCounts:
        """Add the counts of a source, and return them."""
        self.sources.append(counts)
        return counts

    def split(self, name: str) -> SplitCounts:
        """Return the counts of a split."""
        return self.splits.setdefault(name, SplitCounts())

    def content(self) -> JsonObject:
        """Return what ``data.json`` holds."""
        return {
            "schema": SCHEMA,
            "sources": [source.content() for source in self.sources],
            "splits": {name: split.content() for name, split in self.splits.items()},
        }

    def save(self, path: Path) -> None:
        """Write ``data.json``, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, self.content())
