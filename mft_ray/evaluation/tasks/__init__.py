"""Benchmark tasks by name, for the paper's three domains and a user's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mft_ray.errors import UserError
from mft_ray.evaluation.tasks import ifeval
from mft_ray.evaluation.tasks.alpaca import AlpacaTask
from mft_ray.evaluation.tasks.base import ExampleScores, Task, TaskOptions
from mft_ray.evaluation.tasks.code import CodeTask
from mft_ray.evaluation.tasks.harness import HarnessTask
from mft_ray.evaluation.tasks.own import OwnTask

_GSM8K = {"train": "train.jsonl", "test": "test.jsonl"}
TASKS: dict[str, Callable[[str, TaskOptions], Task]] = {
    # math
    "gsm8k": partial(HarnessTask, task="gsm8k", metric="exact_match,strict-match", shots=8, files=_GSM8K),
    "gsm8k_zero_shot": partial(HarnessTask, task="gsm8k", metric="exact_match,strict-match", shots=0, files=_GSM8K),
    "math": partial(HarnessTask, task="minerva_math500", metric="math_verify", shots=4, files={"test": "test.jsonl"}),
    # coding
    "humaneval": partial(CodeTask, hub="openai/openai_humaneval"),
    "humaneval_plus": partial(CodeTask, hub="evalplus/humanevalplus"),
    # instruction following
    "ifeval": partial(
        HarnessTask,
        task="ifeval",
        metric="inst_level_loose_acc",
        shots=0,
        files={"train": "input_data.jsonl"},
        prepare=ifeval.prepare,
    ),
    "alpaca_eval": AlpacaTask,
}

__all__ = ["TASKS", "ExampleScores", "Task", "TaskOptions", "load_task"]


def load_task(name: str, options: TaskOptions | None = None) -> Task:
    """Return a task, its prompts ready.

    Args:
        name: one of `TASKS`, or a file of one's own (see `OwnTask`).
        options: what the user says of it.

    Raises:
        UserError: there is no such task, or its data cannot be used.
    """
    options = options or TaskOptions()
    if name in TASKS:
        return TASKS[name](name, options)
    if ".json" in name:
        return OwnTask(name, options)
    raise UserError(
        f"There is no task {name!r}. There are {', '.join(TASKS)}; or give a file of your own, FILE.jsonl or "
        "FILE.jsonl:SCORES.py."
    )
