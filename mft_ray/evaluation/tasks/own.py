"""A user's own task: prompts and answers in JSON lines, compared by exact match or by the user's own function."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mft_ray.data.rows.files import text_lines
from mft_ray.data.rows.values import LeftOut, as_text, loads
from mft_ray.errors import UserError
from mft_ray.evaluation.answers import match
from mft_ray.evaluation.tasks.base import ExampleScores, Task, TaskOptions
from mft_ray.utils.json_types import JsonObject


class OwnTask(Task):
    """``FILE.jsonl`` or ``FILE.jsonl:SCORES.py``.

    Each line holds ``prompt`` and, for exact match, ``answer``. ``SCORES.py`` defines ``score(example, text)``, which
    gets a whole line and the generated text and returns a number, higher being better; it may also set ``UNTIL``
    (strings that end a text, a newline by default) and ``MAX_NEW_TOKENS`` (256). What a model thinks before it
    answers is not part of the text, and no string ends it.

    Args:
        name: the two files.
        options: what the user said.

    Raises:
        UserError: a file is not what it should be.
    """

    metric = "score"

    def __init__(self, name: str, options: TaskOptions) -> None:
        file, _, code = name.partition(":")
        self.name = name
        self._file = Path(file).expanduser()
        self._rows = _examples(self._file, needs_answer=not code)[: options.limit]
        module = _module(Path(code).expanduser()) if code else None
        if code:
            self.runs_code = f"{Path(code).expanduser().absolute()} as code of yours, with all that you may do"
        self._scorer = code or str(self._file)
        self._score: Callable[[Any, str], float] = module.score if module else _exact
        self.until = _until(code, getattr(module, "UNTIL", ["\n"]))
        self.max_new_tokens = _max_new_tokens(code, getattr(module, "MAX_NEW_TOKENS", 256))
        self.prompts = [_prompt(row.example["prompt"], options) for row in self._rows]

    def score(self, texts: Sequence[str]) -> list[ExampleScores]:
        """Score each text.

        Raises:
            UserError: the user's function fails or returns no number.
        """
        return [
            {self.metric: self._checked(number, row, text)}
            for number, (row, text) in enumerate(zip(self._rows, texts, strict=True), start=1)
        ]

    def _checked(self, number: int, row: _Row, text: str) -> float:
        where = f"score(example, text) of {self._scorer} fails on example {number} (line {row.line} of {self._file})"
        try:
            value = self._score(row.example, text)
        except (Exception, SystemExit) as error:  # a user's function may also end the process
            told = f"{type(error).__name__}: {error}"
            raise UserError(f"{where}: {told}. It must return a number, for any text.") from error
        number_like = hasattr(value, "__float__") and not isinstance(value, str)  # such as numpy's and torch's
        try:
            found = float(value) if number_like else math.nan
        except Exception:  # such as an array of several
            number_like, found = False, math.nan
        if not math.isfinite(found):
            what = "is no number" if number_like else f"is a {type(value).__name__}, no number"
            raise UserError(f"{where}: it returned {str(value)[:80]!r}, which {what}. It must return a finite number.")
        return found


@dataclass(frozen=True)
class _Row:
    """An example of a task, and the line that it stands on."""

    line: int
    example: JsonObject


def _exact(example: Any, text: str) -> float:
    return float(match(text, example["answer"]))


def _prompt(prompt: str, options: TaskOptions) -> str:
    if options.chat is None:
        return prompt
    return options.chat([{"role": "user", "content": prompt}])


def _until(code: str, given: Any) -> list[str]:
    strings = [given] if isinstance(given, str) else given
    if not isinstance(strings, list | tuple) or not all(isinstance(each, str) and each for each in strings):
        raise UserError(f"UNTIL of {code} is {given!r}; it must be a list of strings that end a text, such as ['\\n'].")
    return list(strings)


def _max_new_tokens(code: str, given: Any) -> int:
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise UserError(f"MAX_NEW_TOKENS of {code} is {given!r}; it must be a whole number from 1.")
    return given


def _examples(path: Path, needs_answer: bool) -> list[_Row]:
    examples = []
    try:
        for number, line in text_lines(path):
            examples.append(_Row(number, _example(line, f"{path}, line {number},", needs_answer)))
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"The task file {path} cannot be read: {error}.") from None
    if not examples:
        raise UserError(f"The task file {path} is empty.")
    return examples


def _example(line: str, where: str, needs_answer: bool) -> JsonObject:
    """A line as it is, but for its prompt and the answer to match, which are text: of numbers what was written."""
    try:
        example, written = json.loads(line), loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}. Give one JSON object per line.") from None
    needed = ("prompt", "answer") if needs_answer else ("prompt",)
    missing = [key for key in needed if not isinstance(example, dict) or key not in example]
    if missing:
        raise UserError(f"{where} has no {' and no '.join(missing)}; each line needs {needed}.")
    try:
        texts = {key: as_text(written[key], key, empty=key != "prompt") for key in needed}
    except LeftOut as error:
        raise UserError(f"{where} cannot be used: {error.reason}. Prompts and answers are text.") from None
    return {**example, **texts}


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("mft_ray_own_task", path)
    if not path.exists() or spec is None or spec.loader is None:
        raise UserError(f"There is no Python file {path}; it must define score(example, text).")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"{path} cannot be loaded: {type(error).__name__}: {error}.") from error
    if not callable(getattr(module, "score", None)):
        raise UserError(f"{path} must define score(example, text), which returns a number.")
    return module
