"""From the configuration to examples in three splits that never share a prompt, nor what it was made from."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from mft_ray.config import DataConfig
from mft_ray.data import arithmetic
from mft_ray.data.examples import Example
from mft_ray.data.mixture import Located, examples_of, locate_test, locate_training
from mft_ray.errors import UserError

MOST_GENERATED = 1_000_000  # examples of a generated task that "all that are left" may mean

logger = logging.getLogger(__name__)


def load(config: DataConfig, say: Callable[[str], None] = logger.info) -> dict[str, list[Example]]:
    """Load or generate the examples, drop duplicates and split.

    A prompt is used once, and what examples were made from in one split: the test split wins over validation, and
    validation over train. The test split does not depend on `n_validation` and `n_train`, nor validation on `n_train`.

    Args:
        config: where examples come from and how they split.
        say: told how many rows each part of a mixture gave.

    Returns:
        ``train``, ``validation`` and ``test``, and ``held_out`` where there is one.

    Raises:
        UserError: a file, folder or column is missing, the hub is out of reach, or there are too few rows.
    """
    if config.task == "arithmetic":
        return _arithmetic(config)
    parts, test = locate_training(config), locate_test(config)
    if test is not None and [test.source] == [part.source for part in parts]:
        test = None
    pool = _shuffled(_unique(_mixed(parts, say)), config.seed)
    if test is None:
        tested, pool = _first(pool, config.n_test)
    else:
        tested = _unique(examples_of(test))
        # All of the test file is kept out of training, so that a later, larger n_test stays untouched.
        keys = {example.prompt_key for example in tested}
        pool = _made_from_others([example for example in pool if example.prompt_key not in keys], tested)
        tested = _shuffled(tested, config.seed)[: config.n_test]
    validation, pool = _first(pool, config.n_validation)
    n_train = max(0, len(pool) - config.n_held_out) if config.n_train is None else config.n_train
    train, pool = _first(pool, n_train)
    splits = {"train": train, "validation": validation, "test": _alternating(tested)}
    if config.n_held_out:
        splits["held_out"] = pool[: config.n_held_out]
    _check_sizes(config, splits, parts, test)
    if len({example.origin for example in tested}) < 2:
        raise UserError(
            f"All {len(tested):,} test examples were made from the same ({config.source_column} {tested[0].source!r}), "
            "so nothing could be said of others. Give test data of at least two sources, or leave "
            "data.source_column out."
        )
    return splits


def _mixed(parts: Sequence[Located], say: Callable[[str], None]) -> list[Example]:
    """All examples of all parts, in order."""
    if len(parts) == 1:
        return examples_of(parts[0])
    mixed: list[Example] = []
    for number, part in enumerate(parts):
        found = examples_of(part)
        say(f"{part.source}: {len(found):,} conversations")
        # Files of one name may lie in several folders.
        mixed += [replace(example, id=f"{number}:{example.id}") for example in found]
    different = len({example.prompt_key for example in mixed})
    say(f"{len(mixed):,} conversations in all, with {different:,} different prompts")
    return mixed


def _arithmetic(config: DataConfig) -> dict[str, list[Example]]:
    n_train, others = config.n_train, config.n_held_out + config.n_validation + config.n_test
    if n_train is None:
        n_train = max(1, arithmetic.available(config.digits, config.operations) - others)
        if n_train > MOST_GENERATED:
            raise UserError(
                f"data.n_train is null, which would generate all {n_train:,} examples of data.digits "
                f"{config.digits} that are left. Set data.n_train to a number, such as 10000."
            )
    seen = n_train + config.n_held_out
    splits = arithmetic.generate(
        config.digits, seen, config.n_validation, config.n_test, config.seed, config.operations
    )
    if config.n_held_out:
        splits["train"], splits["held_out"] = splits["train"][:n_train], splits["train"][n_train:]
    return splits


def _unique(examples: Iterable[Example]) -> list[Example]:
    """The first example of every prompt, in order."""
    first: dict[str, Example] = {}
    for example in examples:
        first.setdefault(example.prompt_key, example)
    return list(first.values())


def _alternating(examples: Sequence[Example]) -> list[Example]:
    """Order so that the first few, which may be all that a metric is asked for, are of as many sources as can be."""
    seen: Counter[str] = Counter()
    turns: list[tuple[int, Example]] = []
    for example in examples:
        turns.append((seen[example.origin], example))
        seen[example.origin] += 1
    return [example for _, example in sorted(turns, key=lambda turn: turn[0])]


def _shuffled(examples: Sequence[Example], seed: int) -> list[Example]:
    """Shuffle, with those next to each other that were made from the same."""
    together: dict[str, list[Example]] = {}
    for example in examples:
        together.setdefault(example.origin, []).append(example)
    groups = list(together.values())
    random.Random(seed).shuffle(groups)
    return [example for group in groups for example in group]


def _first(examples: list[Example], n: int) -> tuple[list[Example], list[Example]]:
    """The first so many, and of the rest what was made from something else."""
    return examples[:n], _made_from_others(examples[n:], examples[:n])


def _made_from_others(examples: Iterable[Example], taken: Iterable[Example]) -> list[Example]:
    sources = {example.source for example in taken} - {None}
    return [example for example in examples if example.source not in sources]


def _check_sizes(
    config: DataConfig, splits: Mapping[str, list[Example]], parts: Sequence[Located], test: Located | None
) -> None:
    wanted = {"train": config.n_train or 1, "validation": config.n_validation, "test": config.n_test}
    if config.n_held_out:
        wanted["held_out"] = config.n_held_out
    short = [split for split, n in wanted.items() if len(splits[split]) < n]
    if not short:
        return
    got = ", ".join(f"{split} {len(splits[split]):,} of {wanted[split]:,}" for split in short)
    given = " and ".join(str(part.source) for part in parts)
    where = f"{given}, which validation and test are held out of," if test is None else f"{given} and {test.source}"
    nor = "" if config.source_column is None else f", nor was made from the same ({config.source_column})"
    raise UserError(
        f"There are too few examples for the splits: {got}. What counts is different prompts in {where} with "
        f"an answer, and none that another split also has{nor}. Lower data.n_train, data.n_validation or "
        "data.n_test, or give more data."
    )
