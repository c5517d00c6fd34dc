"""HumanEval: programs that a model completes, run in a jail against their tests (arXiv 2107.03374)."""

from __future__ import annotations

import glob
from collections.abc import Sequence

import datasets

from mft_ray.errors import UserError
from mft_ray.evaluation.sandbox.runner import Problem, run_all
from mft_ray.evaluation.tasks.base import ExampleScores, Task, TaskOptions
from mft_ray.utils.json_types import JsonObject

_ASKED = "Write a solution to the following problem and make sure that it passes the tests:"
_ANSWERED = "Here is the completed function:"


class CodeTask(Task):
    """Pass@1, greedy.

    Args:
        name: ours.
        options: what the user said.
        hub: where the problems are, unless they are local.

    Raises:
        UserError: running programs was not allowed, or the problems cannot be loaded.
    """

    metric = "pass@1"
    # Where a completed function is over, as in the paper.
    until: Sequence[str] = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
    max_new_tokens = 512

    def __init__(self, name: str, options: TaskOptions, *, hub: str) -> None:
        if not options.allow_code_execution:
            raise UserError(
                f"The task {name} runs programs that the model writes. They run without files, network and other "
                "processes, with limits on time and memory; allow that with --allow-code-execution (in a configuration "
                "evaluation.allow_code_execution), or leave it out."
            )
        self.name = name
        self.runs_code = "programs that the model writes, each confined (docs/security.md)"
        self._problems = _problems(name, options, hub)
        self.prompts = [_prompt(problem["prompt"], options) for problem in self._problems]
        if options.chat is not None:
            self.until = (*self.until, "\n```")

    def score(self, texts: Sequence[str]) -> list[ExampleScores]:
        """Run each completed program with its tests: 1 if it passes them, else 0."""
        problems = [
            Problem(
                program=f"{each['prompt']}{text}\n",
                tests=each["test"],
                entry_point=each["entry_point"],
                given=_definitions(each["prompt"]),
            )
            for each, text in zip(self._problems, texts, strict=True)
        ]
        return [{self.metric: float(ran.passed)} for ran in run_all(problems)]


def _definitions(prompt: str) -> str:
    """Return a begun program as one that is whole: some tests use what it defines before the function to complete."""
    for ending in ("", "\n    pass\n"):
        try:
            compile(prompt + ending, "<prompt>", "exec")
        except (SyntaxError, ValueError):
            continue
        return prompt + ending
    return ""


def _prompt(program: str, options: TaskOptions) -> str:
    """The begun program; in a chat as lm-evaluation-harness's humaneval_instruct has it, the answer begun as well."""
    if options.chat is None:
        return program
    asked = f"{_ASKED}\n```python\n{program}\n```\n"
    return f"{options.chat([{'role': 'user', 'content': asked}])}{_ANSWERED}\n```python\n{program}\n"


def _problems(name: str, options: TaskOptions, hub: str) -> list[JsonObject]:
    try:
        if options.data is not None:
            rows = datasets.load_dataset("json", data_files=glob.escape(options.data), split="train")
        else:
            rows = datasets.load_dataset(hub, split="test")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"The problems of task {name} cannot be loaded ({str(error).splitlines()[0]}). Give a local copy with "
            f"--data {name}=FILE."
        ) from None
    needed = {"prompt", "test", "entry_point"}
    if missing := needed.difference(rows.column_names):
        raise UserError(f"The problems of task {name} lack {', '.join(sorted(missing))}; give HumanEval's own format.")
    return list(rows if options.limit is None else rows.select(range(min(options.limit, len(rows)))))
