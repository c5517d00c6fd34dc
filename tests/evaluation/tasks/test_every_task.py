"""What every benchmark task keeps, whichever it is: what the runner, the verdict and a resumed run rely on."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from mft_ray.errors import UserError
from mft_ray.evaluation.tasks import TASKS, Task, TaskOptions, load_task

ASKED = 3


@dataclass(frozen=True)
class Case:
    """A task on data of three examples, and for each a text that is right."""

    name: str
    options: TaskOptions
    right: Sequence[str]

    def load(self, **changes: Any) -> Task:
        return load_task(self.name, replace(self.options, **changes))


def written(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def gsm8k(folder: Path, name: str) -> Case:
    for part, first in (("train", 100), ("test", 0)):
        rows = [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(first, first + 20)]
        written(folder / f"{part}.jsonl", rows[: ASKED if part == "test" else 20])
    return Case(name, TaskOptions(str(folder)), [f"#### {n + 1}" for n in range(ASKED)])


def math_problems(folder: Path, name: str) -> Case:
    rows = [{"problem": f"Halve {n}.", "solution": rf"$\boxed{{\frac{{{n}}}{{2}}}}$", "answer": rf"\frac{{{n}}}{{2}}"}
            for n in (1, 3, 5)]  # fmt: skip
    right = [rf"The final answer is $\frac{{{n}}}{{2}}$. I hope it is correct." for n in (1, 3, 5)]
    return Case(name, TaskOptions(written(folder / "test.jsonl", rows)), right)


def instructions(folder: Path, name: str) -> Case:
    rows = [
        {"key": n, "prompt": f"Rule {n}.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
        for n in range(ASKED)
    ]
    return Case(name, TaskOptions(written(folder / "input.jsonl", rows)), ["plain"] * ASKED)


def programs(folder: Path, name: str) -> Case:
    rows = [
        {"task_id": f"HumanEval/{n}", "prompt": f"def add{n}(x):\n", "entry_point": f"add{n}",
         "test": f"def check(f):\n    assert f(2) == {2 + n}\n"}
        for n in range(ASKED)
    ]  # fmt: skip
    options = TaskOptions(written(folder / "problems.jsonl", rows), allow_code_execution=True)
    return Case(name, options, [f"    return x + {n}" for n in range(ASKED)])


def own(folder: Path, name: str) -> Case:
    rows = [{"prompt": f"Say {n}.", "answer": str(n)} for n in range(ASKED)]
    return Case(written(folder / "own.jsonl", rows), TaskOptions(), [str(n) for n in range(ASKED)])


CASES = {
    "gsm8k": gsm8k,
    "gsm8k_zero_shot": gsm8k,
    "math": math_problems,
    "humaneval": programs,
    "humaneval_plus": programs,
    "ifeval": instructions,
    "own": own,
}
JUDGED = {"alpaca_eval"}  # needs a judge's key: tests/evaluation/tasks/test_alpaca.py


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return CASES[request.param](tmp_path, request.param)


def test_no_task_is_left_out() -> None:
    assert CASES.keys() | JUDGED == TASKS.keys() | {"own"}


def _listed(values: float | list[float]) -> list[float]:
    return values if isinstance(values, list) else [values]


def conversation(turns: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
    """A chat template."""
    return "".join(f"<{turn['role']}>{turn['content']}" for turn in turns) + "<assistant>" * add_generation_prompt


class TestEveryTask:
    def test_it_says_what_the_runner_asks(self, case: Case) -> None:
        task = case.load()
        assert task.name
        assert task.max_new_tokens > 0
        assert all(isinstance(end, str) and end for end in task.until)
        assert len(task.prompts) == ASKED
        assert all(isinstance(prompt, str) and prompt for prompt in task.prompts)

    def test_it_asks_the_same_again(self, case: Case) -> None:
        assert list(case.load().prompts) == list(case.load().prompts)

    def test_a_limit_keeps_the_first(self, case: Case) -> None:
        assert list(case.load(limit=2).prompts) == list(case.load().prompts)[:2]
        assert len(case.load(limit=100).prompts) == ASKED

    def test_what_is_right_scores_one_and_nothing_less(self, case: Case) -> None:
        task = case.load()
        for texts, expected in ((case.right, 1.0), ([*case.right[:-1], ", not it"], (ASKED - 1) / ASKED)):
            scores = task.score(texts)
            assert len(scores) == ASKED
            assert task.summarise(scores)[task.metric] == pytest.approx(expected)

    def test_a_model_that_says_nothing_is_scored_too(self, case: Case) -> None:
        task = case.load()
        for texts in ([""] * ASKED, ["\x00\ud7ff �"] * ASKED, ["x" * 20_000] * ASKED):
            for row in task.score(texts):
                numbers = [value for values in row.values() for value in _listed(values)]
                assert all(math.isfinite(number) for number in numbers)

    def test_scores_of_one_model_do_not_change_those_of_the_next(self, case: Case) -> None:
        task = case.load()
        first = task.score(case.right)
        task.score(["wrong"] * ASKED)
        assert task.score(case.right) == first

    def test_every_example_has_every_metric(self, case: Case) -> None:
        task = case.load()
        scores = task.score(["wrong", *case.right[1:]])
        assert {frozenset(row) for row in scores} == {frozenset(scores[0])}
        assert task.metric in scores[0]
        assert task.summarise(scores).keys() == scores[0].keys()

    def test_what_a_chat_model_is_asked_is_a_conversation(self, case: Case) -> None:
        for prompt in case.load(chat=conversation).prompts:
            assert "<user>" in prompt
            assert "<assistant>" in prompt

    def test_data_that_is_not_there_is_told(self, case: Case, tmp_path: Path) -> None:
        gone = str(tmp_path / "gone.jsonl")
        with pytest.raises(UserError, match="gone"):
            load_task(gone if ".json" in case.name else case.name, replace(case.options, data=gone))

    def test_its_summary_can_be_written(self, case: Case) -> None:
        task = case.load()
        assert json.loads(json.dumps(task.summarise(task.score(case.right))))
