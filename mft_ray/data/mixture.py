"""Where training examples come from: one source, a mixture of the user's, or a domain's recipe."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from mft_ray.config import DataConfig, PartConfig
from mft_ray.data.examples import Example
from mft_ray.data.formats import Row, conversations, find_columns
from mft_ray.data.reading import Source, locate, read
from mft_ray.domains import TREE
from mft_ray.errors import UserError

logger = logging.getLogger(__name__)


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
    """

    source: Source
    setting: str
    columns: tuple[str, ...] | None
    advice: str
    rows: int | None = None
    made_from: str | None = None

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
        f"data.train is not given, and the {config.task} task needs it: a .jsonl, .json or .parquet "
        f"file, or the id of a hub dataset such as openai/gsm8k:main.{others}"
    )


def locate_test(config: DataConfig) -> Located | None:
    """Find where the test split comes from; None where it is held out of the training data.

    Raises:
        UserError: a local file is missing, or its format is unknown.
    """
    return None if config.test is None else _single(config, config.test, "data.test", "test")


def examples_of(part: Located) -> list[Example]:
    """Read a source; rows without an answer are left out, and the log says how many.

    The first ``rows`` are counted in the source's order before anything is left out; of message trees, whose rows
    are single messages, they are conversations. The reference code counts so.

    Raises:
        UserError: it cannot be read, or has not the columns.
    """
    rows = read(part.source, part.setting, part.rows)
    if not rows:
        return []
    present = list(rows[0])
    columns = part.columns or find_columns(present, str(part), part.advice)
    named = columns if part.made_from is None else (*columns, part.made_from)
    missing = [column for column in named if column not in present]
    if missing:
        raise UserError(
            f"{part} has no column {' and no column '.join(map(repr, missing))}; its columns are "
            f"{', '.join(present)}. {part.advice}"
        )
    if columns == TREE and part.rows is not None:
        rows = read(part.source, part.setting)
    found = [
        Example(f"{part.source}:{index}", messages, source=_made_from(rows[index], part.made_from))
        for index, messages in conversations(rows, columns, str(part))
    ]
    if columns == TREE:
        return found[: part.rows]
    if left_out := len(rows) - len(found):
        logger.warning("%d of %d rows of %s have no prompt or no answer: left out", left_out, len(rows), part.source)
    return found


def _made_from(row: Row, column: str | None) -> str | None:
    return None if column is None or row[column] is None else str(row[column])


def _given(part: PartConfig, setting: str) -> Located:
    columns = _named(part, setting)
    advice = f"Set messages_column, or prompt_column and answer_column, in {setting} to columns that it has."
    return Located(locate(part.path, f"{setting}.path", "train"), setting, columns, advice, part.rows)


def _single(config: DataConfig, path: str, setting: str, split: str) -> Located:
    advice = "Set data.messages_column, or data.prompt_column and data.answer_column, to columns that it has."
    if config.task == "gsm8k":
        columns: tuple[str, ...] | None = ("question", "answer")
        advice = "The gsm8k task reads question and answer; for other columns use data.task chat."
    else:
        columns = _named(config, "data") or (("messages",) if config.task == "chat" else None)
    return Located(locate(path, setting, split), setting, columns, advice, made_from=config.source_column)


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
