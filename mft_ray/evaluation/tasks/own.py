"""A user's own task: prompts and answers in JSON lines, compared by exact match or by the user's own function."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mft_ray.data.rows.files import text_lines
from mft_ray.data.rows.values import LeftOut, as_text, loads
from mft_ray.errors import UserError
from mft_ray.evaluation.answers import match
from mft_ray.evaluation.tasks.base import ExampleScores, Task, TaskOptions


class OwnTask(Task):
    """``FILE.jsonl`` or ``FILE.jsonl:SCORES.py``.

    Each line holds ``prompt`` and, for exact match, ``answer``. ``SCORES.py`` defines ``score(example, text)``, which
    gets a whole line and the generated text and returns a number, higher being better; it may also set ``UNTIL``
    (strings that end a text, a newline by default) and ``MAX_NEW_TOKENS`` (256).

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
        self._examples = _examples(Path(file).expanduser(), needs_answer=not code)[: options.limit]
        module = _module(Path(code).expanduser()) if code else None
        self._score: Callable[[Any, str], float] = module.score if module else _exact
        self.until = list(getattr(module, "UNTIL", ["\n"]))
        self.max_new_tokens = int(getattr(module, "MAX_NEW_TOKENS", 256))
        self.prompts = [_prompt(example["prompt"], options) for example in self._examples]

    def score(self, texts: Sequence[str]) -> list[ExampleScores]:
        """Score each text.

        Raises:
            UserError: the user's function fails or returns no number.
        """
        return [
            {self.metric: self._checked(number, example, text)}
            for number, (example, text) in enumerate(zip(self._examples, texts, strict=True), start=1)
        ]

    def _checked(self, number: int, example: Any, text: str) -> float:
        try:
            return float(self._score(example, text))
        except Exception as error:
            raise UserError(
                f"score(example, text) of {self.name} fails on example {number}: {type(error).__name__}: {error}. It "
                "must return a number."
            ) from error


def _exact(example: Any, text: str) -> float:
    return float(match(text, example["answer"]))


def _prompt(prompt: str, options: TaskOptions) -> str:
    if options.chat is None:
        return prompt
    return options.chat([{"role": "user", "content": prompt}])


def _examples(path: Path, needs_answer: bool) -> list[dict[str, Any]]:
    examples = []
    try:
        for number, line in text_lines(path):
            examples.append(_example(line, f"{path}, line {number},", needs_answer))
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"The task file {path} cannot be read: {error}.") from None
    if not examples:
        raise UserError(f"The task file {path} is empty.")
    return examples


def _example(line: str, where: str, needs_answer: bool) -> dict[str, Any]:
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
    except Exception as error:
        raise UserError(f"{path} cannot be loaded: {type(error).__name__}: {error}.") from error
    if not callable(getattr(module, "score", None)):
        raise UserError(f"{path} must define score(example, text), which returns a number.")
    return module
