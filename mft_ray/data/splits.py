"""From the configuration to examples in three splits that never share a prompt, nor what it was made from."""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from mft_ray.config import DataConfig
from mft_ray.data import arithmetic
from mft_ray.data.accounting import DUPLICATE, IN_TEST, NOT_DRAWN, SAME_PROMPT, Accounting, SourceCounts
from mft_ray.data.examples import Example
from mft_ray.data.mixture import Located, examples_of, locate_test, locate_training
from mft_ray.errors import UserError

MOST_GENERATED = 1_000_000  # examples of a generated task that "all that are left" may mean

logger = logging.getLogger(__name__)


def load(
    config: DataConfig, log: Callable[[str], None] = logger.warning, accounting: Accounting | None = None
) -> dict[str, list[Example]]:
    """Load or generate the examples, drop duplicates and split.

    A prompt is used once, and what examples were made from in one split: the test split wins over validation, and
    validation over train. The test split does not depend on `n_validation` and `n_train`, nor validation on `n_train`.

    Args:
        config: where examples come from and how they split.
        say: told what is left out and why, and how many rows each part of a mixture gave.
        accounting: what became of each row, which is filled.

    Returns:
        ``train``, ``validation`` and ``test``, and ``held_out`` where there is one.

    Raises:
        UserError: a file, folder or column is missing, the hub is out of reach, or there are too few rows.
    """
    accounting = Accounting() if accounting is None else accounting
    if config.task == "arithmetic":
        splits = _arithmetic(config)
        for name, examples in splits.items():
            accounting.split(name).examples = len(examples)
        return splits
    parts, test = locate_training(config), locate_test(config)
    if test is not None and [test.source] == [part.source for part in parts]:
        test = None
    pool = _Pool(parts, test, accounting)
    splits = _split(config, pool, log)
    for told in pool.described():
        log(told)
    _check_sizes(config, splits, parts, test)
    tested = splits["test"]
    if len({example.origin for example in tested}) < 2:
        raise UserError(
            f"All {len(tested):,} test examples were made from the same ({config.source_column} {tested[0].source!r}), "
            "so nothing could be said of others. Give test data of at least two sources, or leave "
            "data.source_column out."
        )
    pool.count_used(splits)
    return splits


def _split(config: DataConfig, pool: _Pool, log: Callable[[str], None]) -> dict[str, list[Example]]:
    mixed = _shuffled(pool.mixed(log), config.seed)
    if pool.test is None:
        tested, mixed = pool.first(mixed, config.n_test, "test", config.source_column)
    else:
        tested = pool.tested()
        # All of the test file is kept out of training, so that a later, larger n_test stays untouched.
        mixed = pool.without_prompts_of(mixed, tested)
        mixed = pool.made_from_others(mixed, tested, "test", config.source_column)
        tested = _shuffled(tested, config.seed)
        for example in tested[config.n_test :]:
            pool.drop(example, NOT_DRAWN, tested=True)
        tested = tested[: config.n_test]
    validation, mixed = pool.first(mixed, config.n_validation, "validation", config.source_column)
    n_train = max(0, len(mixed) - config.n_held_out) if config.n_train is None else config.n_train
    train, mixed = pool.first(mixed, n_train, "train", config.source_column)
    splits = {"train": train, "validation": validation, "test": _alternating(tested)}
    if config.n_held_out:
        splits["held_out"], mixed = mixed[: config.n_held_out], mixed[config.n_held_out :]
    for example in mixed:
        pool.drop(example, NOT_DRAWN)
    return splits


class _Pool:
    """The examples of all sources, and what becomes of each.

    Args:
        parts: sources of training data.
        test: source of test data, if it is another.
        accounting: filled.
    """

    def __init__(self, parts: Sequence[Located], test: Located | None, accounting: Accounting) -> None:
        self.test = test
        self._parts = parts
        self._accounting = accounting
        self._counts = [accounting.source(part.counts()) for part in parts]
        self._test_counts = None if test is None else accounting.source(test.counts())

    def mixed(self, log: Callable[[str], None]) -> list[Example]:
        """Return the first example of every prompt of all training sources, in order."""
        seen: dict[bytes, bytes] = {}
        unique: list[Example] = []
        total = 0
        for number, (part, counts) in enumerate(zip(self._parts, self._counts, strict=True)):
            before = total
            for example in examples_of(part, counts):
                total += 1
                if not _repeats(example, seen, counts):
                    # Files of one name may lie in several folders.
                    several = len(self._parts) > 1
                    unique.append(replace(example, id=f"{number}:{example.id}") if several else example)
            if len(self._parts) > 1:
                log(f"{part.source}: {total - before:,} conversations")
        if len(self._parts) > 1:
            log(f"{total:,} conversations in all, with {len(unique):,} different prompts")
        return unique

    def tested(self) -> list[Example]:
        """Return the first example of every prompt of the test source, in order."""
        if self.test is None or self._test_counts is None:
            return []
        seen: dict[bytes, bytes] = {}
        counts = self._test_counts
        return [example for example in examples_of(self.test, counts) if not _repeats(example, seen, counts)]

    def without_prompts_of(self, examples: Iterable[Example], tested: Iterable[Example]) -> list[Example]:
        """Return examples with none of the prompts of the test data."""
        keys = {_digest(example.prompt_key) for example in tested}
        return self._kept(examples, lambda example: _digest(example.prompt_key) not in keys, IN_TEST)

    def made_from_others(
        self, examples: Iterable[Example], taken: Iterable[Example], split: str, column: str | None
    ) -> list[Example]:
        """Return examples that were made from something else than those that a split has taken."""
        sources = {example.source for example in taken} - {None}
        reason = f"an example of the {split} split was made from the same ({column})"
        return self._kept(examples, lambda example: example.source not in sources, reason)

    def first(
        self, examples: list[Example], n: int, split: str, column: str | None
    ) -> tuple[list[Example], list[Example]]:
        """Return the first so many, and of the rest what was made from something else."""
        return examples[:n], self.made_from_others(examples[n:], examples[:n], split, column)

    def drop(self, example: Example, reason: str, tested: bool = False) -> None:
        """Count an example that is in no split."""
        counts = self._owner(example.id, tested)
        counts.left_out.add(reason, counts.place_of(example.id))

    def count_used(self, splits: Mapping[str, Sequence[Example]]) -> None:
        """Count the examples of the splits, for their sources and for themselves."""
        for name, examples in splits.items():
            tested = name == "test" and self.test is not None
            for example in examples:
                self._owner(example.id, tested).used += 1
            split = self._accounting.split(name)
            split.examples = len(examples)
            split.place_of = partial(self._place, tested=tested)

    def described(self) -> list[str]:
        """Return what a user should know of the sources, in sentences."""
        return [told for counts in self._accounting.sources for told in counts.described()]

    def _place(self, example_id: str, tested: bool) -> str:
        return self._owner(example_id, tested).place_of(example_id)

    def _owner(self, example_id: str, tested: bool) -> SourceCounts:
        if tested and self._test_counts is not None:
            return self._test_counts
        return self._counts[int(example_id.partition(":")[0]) if len(self._counts) > 1 else 0]

    def _kept(self, examples: Iterable[Example], keep: Callable[[Example], bool], reason: str) -> list[Example]:
        kept = []
        for example in examples:
            if keep(example):
                kept.append(example)
            else:
                self.drop(example, reason)
        return kept


def _repeats(example: Example, seen: dict[bytes, bytes], counts: SourceCounts) -> bool:
    """Whether an earlier example has the prompt; counted if so."""
    prompt, answer = _digest(example.prompt_key), _digest(json.dumps(example.messages[-1], sort_keys=True))
    first = seen.setdefault(prompt, answer)
    if first is answer:
        return False
    counts.left_out.add(DUPLICATE if first == answer else SAME_PROMPT, counts.place_of(example.id))
    return True


def _digest(text: str) -> bytes:
    # Sixteen bytes instead of a second copy of every prompt.
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


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
