"""How much data a configuration trains on: counted where the data is here, and assumed, in words, where it is not."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from mft_ray.config import Config, DataConfig
from mft_ray.data.mixture import Located, locate_test, locate_training
from mft_ray.data.rows.reading import read
from mft_ray.data.store import SPLITS, open_split
from mft_ray.errors import UserError
from mft_ray.preflight.needs import Lengths
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.prepare import prepare_data, tokenizer_of, with_absolute_paths, within_positions

_ROWS = 500  # whose lengths are measured
_OF_ARITHMETIC = 1_000
_ANSWERS = 0.5  # of an example's tokens, where nobody can count them


@dataclass(frozen=True)
class Workload:
    """Examples that a run trains and scores on.

    Attributes:
        train: examples of the training split.
        held_out: further ones that masks may be trained on.
        validation: of the validation split.
        test: of the test split.
        lengths: of training examples.
        said: what of this is counted, and what is assumed.
    """

    train: int
    held_out: int
    validation: int
    test: int
    lengths: Lengths
    said: str

    @property
    def tokens(self) -> float:
        """Tokens of all splits."""
        return (self.train + self.held_out + self.validation + self.test) * self.lengths.mean


def workload(config: Config, model: nn.Module, mean: int | None = None) -> Workload:
    """Find out how many examples there are, and how long.

    Args:
        config: configuration of a run.
        model: its structure.
        mean: tokens of an example, to be taken instead of looking at the data.

    Raises:
        UserError: local data cannot be used, or it is not known how many rows there are.
    """
    config = with_absolute_paths(config)
    data = within_positions(config, model)
    generated = data.task == "arithmetic"
    sources = [] if generated else locate_training(data)
    local = generated or all(part.source.local for part in sources)
    rows, of_rows = _rows(data, sources, local)
    test = None if generated else locate_test(data)
    given = data.n_held_out + data.n_validation + (0 if test is not None else data.n_test)
    train = max(1, rows - given) if data.n_train is None else data.n_train
    if mean is not None:
        lengths, of_lengths = Lengths(mean, max(mean, data.max_length), mean * _ANSWERS), "lengths as given"
    elif local:
        lengths, of_lengths = _measured(config, data, model, min(_ROWS, train))
    else:
        lengths = Lengths(data.max_length, data.max_length, data.max_length * _ANSWERS)
        of_lengths = (
            f"assumed: every example has {data.max_length:,} tokens (data.max_length), the most that there can be, and "
            "half of them are an answer's. Give --length for another mean"
        )
    return Workload(train, data.n_held_out, data.n_validation, data.n_test, lengths, f"{of_rows}; {of_lengths}")


def _rows(data: DataConfig, sources: list[Located], local: bool) -> tuple[int, str]:
    if data.n_train is not None:
        return data.n_train, f"{data.n_train:,} training examples, as data.n_train says"
    if not sources:
        return _OF_ARITHMETIC, f"assumed: {_OF_ARITHMETIC:,} generated examples"
    if local:
        found = [sum(1 for _ in read(part.source, part.setting, part.rows, wanted=())) for part in sources]
        return sum(found), f"{sum(found):,} rows counted"
    known = [part.rows for part in sources if part.rows is not None]
    if len(known) < len(sources):
        raise UserError(
            "How many rows the data on the hub has is not known before it is fetched. Give --set data.n_train=N, or "
            "rows for each part of data.mixture."
        )
    return sum(known), f"assumed: all {sum(known):,} rows that the parts on the hub are cut to are there"


def _measured(config: Config, data: DataConfig, model: nn.Module, train: int) -> tuple[Lengths, str]:
    """Encode some rows as a run would."""
    few = data.model_copy(update={"n_train": train, "n_held_out": 0, "n_validation": 2, "n_test": 2})
    config = config.model_copy(update={"data": few})
    with tempfile.TemporaryDirectory(prefix="mft-ray-plan-") as scratch:
        folder = RunFolder(Path(scratch))
        prepare_data(config, tokenizer_of(config), model, folder)
        rows = [
            (len(row["input_ids"]), row["answer_tokens"]) for split in SPLITS for row in open_split(folder.data, split)
        ]
    count = len(rows)
    mean, answers = (sum(row[place] for row in rows) / count for place in (0, 1))
    longest = max(length for length, _ in rows)
    return Lengths(mean, longest, max(1.0, answers)), f"lengths of {count:,} of them measured"
