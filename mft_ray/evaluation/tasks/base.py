"""What every benchmark task is: prompts, when a text ends, and how texts are scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# By metric: a number for one example, or several (such as one for each of its instructions).
ExampleScores = dict[str, float | list[float]]


@dataclass(frozen=True)
class TaskOptions:
    """What a user may say of a task.

    Attributes:
        data: local file or folder; None loads from the hub.
        limit: the first so many examples; None takes all.
        shots: examples with their answers before each prompt; None takes the task's own number.
        chat: turns a conversation into a prompt, for a model that is tuned for it; None prompts with plain text.
        allow_code_execution: whether programs that the model writes may be run, in a jail.
    """

    data: str | None = None
    limit: int | None = None
    shots: int | None = None
    chat: Callable[..., str] | None = None
    allow_code_execution: bool = False


class Task(ABC):
    """A benchmark.

    Attributes:
        name: name of the task.
        metric: the one of its metrics that it is known by; higher is better.
        prompts: one per example.
        until: strings that end a text.
        max_new_tokens: largest number of new tokens of a text.
        rendered: whether a chat template wrote the prompts, all special tokens with them.
        runs_code: what it runs beside code of this package; None if nothing.
    """

    rendered = False
    runs_code: str | None = None
    name: str
    metric: str
    prompts: Sequence[str]
    until: Sequence[str]
    max_new_tokens: int

    @abstractmethod
    def score(self, texts: Sequence[str]) -> list[ExampleScores]:
        """Score what a model generated, one text per prompt, in their order."""

    def summarise(self, scores: Sequence[ExampleScores]) -> dict[str, float]:
        """Average each metric; where examples have several numbers, over all numbers of all examples."""
        means = {}
        for metric in scores[0] if scores else ():
            values = [value for row in scores for value in _numbers(row[metric])]
            means[metric] = sum(values) / len(values)
        return means


def _numbers(value: float | list[float]) -> list[float]:
    return value if isinstance(value, list) else [value]
