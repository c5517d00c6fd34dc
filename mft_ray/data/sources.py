"""From the configuration to examples in three splits that never share a prompt."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Mapping
from typing import Any

from mft_ray.config import DataConfig
from mft_ray.data import arithmetic
from mft_ray.data.examples import Example, Message
from mft_ray.data.reading import Source, locate, read
from mft_ray.errors import UserError

MOST_GENERATED = 1_000_000  # examples of a generated task that "all that are left" may mean

logger = logging.getLogger(__name__)


def load(config: DataConfig) -> dict[str, list[Example]]:
    """Load or generate the examples, drop duplicates and split.

    A prompt is used once: the test split wins over validation, and validation over train. The test
    split does not depend on `n_validation` and `n_train`, nor validation on `n_train`.

    Returns:
        ``train``, ``validation`` and ``test``.

    Raises:
        UserError: a file, folder or column is missing, the hub is out of reach, or there are too few rows.
    """
    if config.task == "arithmetic":
        return _arithmetic(config)
    if config.train is None:
        raise UserError(
            f"data.train is not given, and the {config.task} task needs it: a .jsonl, .json or .parquet "
            "file, or the id of a hub dataset such as openai/gsm8k:main."
        )
    train = locate(config.train, "data.train", "train")
    test = locate(config.test, "data.test", "test") if config.test is not None else train
    pool = _unique(_examples(config, train, "data.train"))
    random.Random(config.seed).shuffle(pool)
    if test == train:
        tested, pool = pool[: config.n_test], pool[config.n_test :]
    else:
        tested = _unique(_examples(config, test, "data.test"))
        # All of the test file is kept out of training, so that a later, larger n_test stays untouched.
        keys = {example.prompt_key for example in tested}
        pool = [example for example in pool if example.prompt_key not in keys]
        random.Random(config.seed).shuffle(tested)
        tested = tested[: config.n_test]
    splits = {
        "train": pool[config.n_validation :][: config.n_train],
        "validation": pool[: config.n_validation],
        "test": tested,
    }
    _check_sizes(config, splits, train, test)
    return splits


def _arithmetic(config: DataConfig) -> dict[str, list[Example]]:
    n_train = config.n_train
    if n_train is None:
        n_train = max(1, arithmetic.available(config.digits) - config.n_validation - config.n_test)
        if n_train > MOST_GENERATED:
            raise UserError(
                f"data.n_train is null, which would generate all {n_train:,} examples of data.digits "
                f"{config.digits} that are left. Set data.n_train to a number, such as 10000."
            )
    return arithmetic.generate(config.digits, n_train, config.n_validation, config.n_test, config.seed)


def _examples(config: DataConfig, source: Source, setting: str) -> list[Example]:
    """The source's rows as examples; rows without an answer are left out, and the log says how many."""
    rows = read(source, setting)
    needed = _columns(config)
    present = list(rows[0]) if rows else []
    missing = [column for column in needed if column not in present]
    if rows and missing:
        raise UserError(
            f"{setting} ({source}) has no column {' and no column '.join(map(repr, missing))}; its columns "
            f"are {', '.join(present)}. " + _column_advice(config)
        )
    examples = []
    for index, row in enumerate(rows):
        where = f"{source}:{index}"
        if config.task == "chat" and config.prompt_column is None:
            messages = _conversation(row[config.messages_column], f"Row {index} of {setting} ({source})")
        else:
            messages = _pair(row, needed[0], needed[1])
        if messages:
            examples.append(Example(id=where, messages=messages))
    if len(examples) < len(rows):
        left_out = len(rows) - len(examples)
        logger.warning("%d of %d rows of %s have no prompt or no answer: left out", left_out, len(rows), source)
    return examples


def _columns(config: DataConfig) -> tuple[str, ...]:
    """The columns that the task needs: a prompt's and an answer's, or a conversation's."""
    if config.task == "gsm8k":
        return ("question", "answer")
    if (config.prompt_column is None) != (config.answer_column is None):
        raise UserError(
            f"data.prompt_column is {config.prompt_column!r} and data.answer_column is "
            f"{config.answer_column!r}: give both, or neither for rows that hold a whole conversation in "
            "data.messages_column."
        )
    if config.prompt_column is not None and config.answer_column is not None:
        return (config.prompt_column, config.answer_column)
    return (config.messages_column,)


def _column_advice(config: DataConfig) -> str:
    if config.task == "gsm8k":
        return "The gsm8k task reads question and answer; for other columns use data.task chat."
    return "Set data.messages_column, or data.prompt_column and data.answer_column, to columns that it has."


def _pair(row: Mapping[str, Any], prompt_column: str, answer_column: str) -> tuple[Message, ...]:
    """A prompt and its answer, or nothing if either is empty."""
    prompt, answer = _text(row[prompt_column]), _text(row[answer_column])
    # Alpaca's files keep what an instruction is about in a column of its own.
    if prompt_column == "instruction" and _text(row.get("input")):
        prompt = f"{prompt}\n\n{row['input']}"
    if not prompt or not answer:
        return ()
    return ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer})


def _text(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if text.strip() else ""


def _conversation(given: Any, where: str) -> tuple[Message, ...]:
    """The messages up to the last answer, or nothing if there is no answer or nothing before it."""
    if given is None:
        return ()
    if not isinstance(given, list) or not all(isinstance(message, Mapping) for message in given):
        raise UserError(
            f"{where} holds {str(given)[:80]!r} where a list of messages belongs. Each message is an object "
            "with role and content; for plain text columns set data.prompt_column and data.answer_column."
        )
    messages: list[Message] = []
    for message in given:
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not isinstance(content, str | None) or "content" not in message:
            raise UserError(
                f"{where} has the message {str(dict(message))[:80]!r}. Each message needs a role (system, "
                "user or assistant) and a content that is text."
            )
        messages.append({"role": role, "content": content or ""})
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if len(messages) < 2 or not messages[-1]["content"].strip():
        return ()
    return tuple(messages)


def _unique(examples: Iterable[Example]) -> list[Example]:
    """The first example of every prompt, in order."""
    first: dict[str, Example] = {}
    for example in examples:
        first.setdefault(example.prompt_key, example)
    return list(first.values())


def _check_sizes(config: DataConfig, splits: Mapping[str, list[Example]], train: Source, test: Source) -> None:
    wanted = {"train": config.n_train or 1, "validation": config.n_validation, "test": config.n_test}
    short = [split for split, n in wanted.items() if len(splits[split]) < n]
    if not short:
        return
    got = ", ".join(f"{split} {len(splits[split]):,} of {wanted[split]:,}" for split in short)
    where = f"{train}, which validation and test are held out of," if test == train else f"{train} and {test}"
    raise UserError(
        f"There are too few examples for the splits: {got}. What counts is different prompts in {where} with "
        "an answer, and none that the test data also has. Lower data.n_train, data.n_validation or "
        "data.n_test, or give more data."
    )
