"""Tasks on small local files: their prompts, and the scores of texts whose worth is known."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import yaml
from generation import Texts  # benchmarks/generation.py
from lm_eval.evaluator import simple_evaluate

from mft_ray.errors import UserError
from mft_ray.evaluation.tasks import TASKS, Task, TaskOptions, load_task
from mft_ray.evaluation.tasks.harness import HarnessTask


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def gsm8k(tmp_path: Path) -> Path:
    def rows(first: int, count: int) -> list[dict[str, str]]:
        numbers = range(first, first + count)
        return [{"question": f"What is {n} + 1?", "answer": f"{n} + 1 = {n + 1}\n#### {n + 1}"} for n in numbers]

    write(tmp_path / "train.jsonl", rows(100, 20))
    write(tmp_path / "test.jsonl", rows(0, 5))
    return tmp_path


def test_gsm8k_shows_examples_from_train_and_asks_test(gsm8k: Path) -> None:
    task = load_task("gsm8k", TaskOptions(str(gsm8k)))
    assert len(task.prompts) == 5
    for number, prompt in enumerate(task.prompts):
        assert prompt.count("Question:") == 9
        assert prompt.endswith(f"Question: What is {number} + 1?\nAnswer:")
        assert "What is 1" in prompt
    assert "Question:" in task.until
    assert len(load_task("gsm8k", TaskOptions(str(gsm8k), limit=2, shots=1)).prompts) == 2
    assert load_task("gsm8k_zero_shot", TaskOptions(str(gsm8k))).prompts[3] == "Question: What is 3 + 1?\nAnswer:"


def test_gsm8k_scores_the_answer(gsm8k: Path) -> None:
    task = load_task("gsm8k", TaskOptions(str(gsm8k)))
    texts = [" so\n#### 1", " so\n#### 3", " it is 3", "", " 1,000\n#### 5"]
    scores = task.score(texts)
    assert [score[task.metric] for score in scores] == [1, 0, 0, 0, 1]
    assert [score["exact_match,flexible-extract"] for score in scores] == [1, 0, 1, 0, 1]
    assert task.summarise(scores) == {task.metric: 0.4, "exact_match,flexible-extract": 0.6}
    assert task.score(texts) == scores  # again, as for another model


def test_a_chat_models_prompt_is_a_conversation(gsm8k: Path) -> None:
    def chat(turns: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return "".join(f"<{turn['role']}>{turn['content']}" for turn in turns) + "<assistant>" * add_generation_prompt

    prompt = load_task("gsm8k", TaskOptions(str(gsm8k), shots=1, chat=chat)).prompts[0]
    assert prompt.count("<user>") == prompt.count("<assistant>") == 2


def test_math_compares_by_meaning(tmp_path: Path) -> None:
    rows = [{"problem": "Halve 1.", "solution": r"It is $\boxed{\frac{1}{2}}$.", "answer": r"\frac{1}{2}"}] * 3
    task = load_task("math", TaskOptions(str(write(tmp_path / "math.jsonl", rows))))
    assert task.prompts[0].count("Problem:") == 5
    scores = task.score([r"The final answer is $0.5$. I hope it is correct.", "The answer is $2$.", ""])
    assert [score[task.metric] for score in scores] == [1, 0, 0]


@pytest.fixture
def ifeval(tmp_path: Path) -> Task:
    kinds = ["punctuation:no_comma", "change_case:english_lowercase"]
    rows = [
        {"key": 1, "prompt": "Without commas.", "instruction_id_list": kinds[:1], "kwargs": [{}]},
        {"key": 2, "prompt": "No commas, no capitals.", "instruction_id_list": kinds, "kwargs": [{}, {}]},
    ]
    return load_task("ifeval", TaskOptions(str(write(tmp_path / "ifeval.jsonl", rows))))


def test_ifeval_counts_instructions_and_prompts(ifeval: Task) -> None:
    assert ifeval.prompts == ["Without commas.", "No commas, no capitals."]
    scores = ifeval.score(["all good", "this is one, two or three"])
    assert [score["inst_level_strict_acc"] for score in scores] == [[1.0], [0.0, 1.0]]
    summary = ifeval.summarise(scores)
    assert summary["inst_level_loose_acc"] == summary["inst_level_strict_acc"] == pytest.approx(2 / 3)
    assert summary["prompt_level_strict_acc"] == 0.5


class Asked(Texts):
    """What it was asked, beside the texts that it gives back."""

    def generate_until(self, requests: list[Any], *args: Any, **kwargs: Any) -> list[str]:
        self.prompts = [request.args[0] for request in requests]
        return super().generate_until(requests, *args, **kwargs)


def test_few_shot_prompts_are_the_harness_own(gsm8k: Path) -> None:
    task = load_task("gsm8k", TaskOptions(str(gsm8k)))
    assert isinstance(task, HarnessTask)
    ours, asked = list(task.prompts), Asked([""] * len(task.prompts))
    # Its evaluator draws the examples before each prompt with a seed; a task alone would draw others each time.
    simple_evaluate(asked, tasks=[task._task], limit=len(ours), bootstrap_iters=0)
    assert asked.prompts == ours


def test_scores_are_the_harness_own(gsm8k: Path, ifeval: Task) -> None:
    texts = {
        "gsm8k": ["#### 1", "it is 2", "", "#### 4.", "five"],
        "ifeval": ["one, two", "all small and plain"],
    }
    for task in (load_task("gsm8k", TaskOptions(str(gsm8k))), ifeval):
        assert isinstance(task, HarnessTask)
        given = texts[task.name]
        ours = task.summarise(task.score(given))
        result = simple_evaluate(Texts(given), tasks=[task._task], limit=len(given), bootstrap_iters=0)
        theirs = {key.removesuffix(",none"): value for key, value in result["results"][task.name].items()}
        assert len(ours) >= 2
        assert ours == {metric: pytest.approx(theirs[metric]) for metric in ours}


PROBLEM = {
    "task_id": "HumanEval/0",
    "prompt": "def double(x):\n",
    "test": "def check(f):\n    assert f(2) == 4\n    assert f(-1) == -2\n",
    "entry_point": "double",
}


def test_humaneval_runs_what_it_may(tmp_path: Path) -> None:
    file = str(write(tmp_path / "problems.jsonl", [PROBLEM] * 4))
    task = load_task("humaneval", TaskOptions(file, allow_code_execution=True))
    assert task.prompts == [PROBLEM["prompt"]] * 4
    scores = task.score(["    return 2 * x", "    return x", "    import os; os._exit(0)", "  return ("])
    assert [score["pass@1"] for score in scores] == [1, 0, 0, 0]
    assert task.summarise(scores) == {"pass@1": 0.25}


def test_humaneval_of_a_chat_model_is_the_harness_own_form(tmp_path: Path) -> None:
    file = str(write(tmp_path / "problems.jsonl", [PROBLEM] * 2))

    def chat(turns: list[dict[str, str]]) -> str:
        return "".join(f"<{turn['role']}>{turn['content']}" for turn in turns) + "<assistant>"

    task = load_task("humaneval", TaskOptions(file, chat=chat, allow_code_execution=True))
    folder = Path(lm_eval.__file__).parent / "tasks" / "humaneval"
    theirs = yaml.safe_load((folder / "humaneval_instruct.yaml").read_text().replace("!function ", ""))
    asked, begun = (theirs[name].replace("{{ prompt }}", PROBLEM["prompt"]) for name in ("doc_to_text", "gen_prefix"))
    assert task.prompts == [f"<user>{asked}<assistant>{begun}"] * 2
    assert "\n```" in task.until
    assert "\n```" not in load_task("humaneval", TaskOptions(file, allow_code_execution=True)).until
    scores = task.score(["    return 2 * x", "    return x"])
    assert [score["pass@1"] for score in scores] == [1, 0]


def test_programs_are_not_run_unasked(tmp_path: Path) -> None:
    file = str(write(tmp_path / "problems.jsonl", [PROBLEM]))
    with pytest.raises(UserError, match="--allow-code-execution"):
        load_task("humaneval", TaskOptions(file))


def test_a_task_of_ones_own_by_exact_match(tmp_path: Path) -> None:
    rows = [{"prompt": "2+2=", "answer": 4}, {"prompt": "Capital of France?", "answer": "Paris"}]
    task = load_task(str(write(tmp_path / "mine.jsonl", rows)))
    assert (task.prompts, task.until) == (["2+2=", "Capital of France?"], ["\n"])
    assert task.summarise(task.score([" 4", "rome"])) == {"score": 0.5}


def test_a_task_of_ones_own_by_a_function(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.jsonl", [{"prompt": "Say abc", "wanted": "abc"}] * 2)
    code = tmp_path / "scores.py"
    code.write_text(
        "UNTIL, MAX_NEW_TOKENS = ['.'], 7\n"
        "def score(example, text):\n    return sum(letter in text for letter in example['wanted']) / 3\n"
    )
    task = load_task(f"{file}:{code}")
    assert (task.until, task.max_new_tokens) == (["."], 7)
    assert [score["score"] for score in task.score(["abc", "a"])] == [1, 1 / 3]


@pytest.mark.parametrize(
    ("lines", "code", "message"),
    [
        ("", None, "is empty"),
        ("{", None, "line 1, is not JSON"),
        ('{"answer": "x"}', None, "line 1, has no prompt"),
        ('{"prompt": "x"}', None, "line 1, has no answer"),
        ("[1]", None, "has no prompt and no answer"),
        ('{"prompt": "x"}', "def scores(): pass", "must define score"),
        ('{"prompt": "x"}', "import nothing_of_the_kind", "ModuleNotFoundError"),
        (
            '{"prompt": ["x"]}',
            "def score(example, text): return 1",
            "line 1, cannot be used: prompt is a list, not text",
        ),
        ('\n{"prompt": {"a": 1}, "answer": "x"}', None, "line 2, cannot be used: prompt is an object, not text"),
        ('{"prompt": "x", "answer": null}', None, "line 1, cannot be used: answer is null"),
        ('{"prompt": "x"}', "exit()", "cannot be loaded: SystemExit"),
        ('{"prompt": "x"}', "UNTIL = [1]\ndef score(example, text): return 1", "UNTIL of .*code.py is .1."),
        ('{"prompt": "x"}', "UNTIL = ['']\ndef score(example, text): return 1", "UNTIL of .*code.py is"),
        (
            '{"prompt": "x"}',
            "MAX_NEW_TOKENS = 0\ndef score(example, text): return 1",
            "MAX_NEW_TOKENS of .*code.py is 0",
        ),
        ('{"prompt": "x"}', "def score(example, text): return None", "returned 'None', which is a NoneType, no number"),
        ('{"prompt": "x"}', "def score(example, text): return '1'", "returned '1', which is a str, no number"),
        ('{"prompt": "x"}', "def score(example, text): return float('nan')", "returned 'nan', which is no number"),
        ('{"prompt": "x"}', "def score(example, text): return 1e999", "returned 'inf', which is no number"),
        ('{"prompt": "x"}', "def score(example, text): return 1j", "returned '1j', which is a complex, no number"),
        ('{"prompt": "x"}', "import sys\ndef score(example, text): sys.exit('bye')", "example 1 .*SystemExit: bye"),
        (
            '\n{"prompt": "x"}',
            "def score(example, text): return example['y']",
            r"code.py .* 1 \(line 2 of .*mine.jsonl\): Key",
        ),
    ],
)
def test_mistakes_in_a_task_of_ones_own_are_said(tmp_path: Path, lines: str, code: str | None, message: str) -> None:
    (tmp_path / "mine.jsonl").write_text(lines)
    name = str(tmp_path / "mine.jsonl")
    if code is not None:
        (tmp_path / "code.py").write_text(code)
        name += f":{tmp_path / 'code.py'}"
    with pytest.raises(UserError, match=message):
        load_task(name).score(["text"])


def test_numbers_of_any_kind_are_scores(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.jsonl", [{"prompt": "a"}] * 4)
    (tmp_path / "code.py").write_text(
        "import numpy, torch\n"
        "kinds = iter([True, numpy.float32(0.5), torch.tensor(2), 3])\n"
        "UNTIL = 'END'\n"
        "def score(example, text): return next(kinds)\n"
    )
    task = load_task(f"{file}:{tmp_path / 'code.py'}")
    assert [row["score"] for row in task.score([""] * 4)] == [1.0, 0.5, 2.0, 3.0]
    assert task.until == ["END"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_task_file_is_read_as_data_is(tmp_path: Path, encoding: str) -> None:
    lines = [{"prompt": "A line\u2028separator", "answer": "yes"}, {"prompt": "a next\x85line", "answer": "no"}]
    text = "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (tmp_path / "mine.jsonl").write_bytes(text.encode(encoding))
    task = load_task(str(tmp_path / "mine.jsonl"))
    assert task.prompts == [line["prompt"] for line in lines]
    assert task.summarise(task.score(["yes", "no"])) == {"score": 1.0}


def test_numbers_of_ones_own_task_are_the_text_that_was_written(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": 1.50, "answer": 12345678901234567890123}\n{"prompt": "x", "answer": 2.0}\n')
    task = load_task(str(file))
    assert task.prompts == ["1.50", "x"]
    assert [score["score"] for score in task.score(["12345678901234567890123", "2.0"])] == [1, 1]
    (tmp_path / "code.py").write_text("def score(example, text):\n    return example['answer'] * 2\n")
    own = load_task(f"{file}:{tmp_path / 'code.py'}")
    assert own.score(["", ""])[1] == {"score": 4.0}  # to one's own function a number is a number


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": ["x"], "answer": "y"}', "line 2, cannot be used: prompt is a list, not text"),
        ('{"prompt": {"a": 1}, "answer": "y"}', "line 2, cannot be used: prompt is an object, not text"),
        ('{"prompt": null, "answer": "y"}', "line 2, cannot be used: prompt is null"),
        ('{"prompt": " ", "answer": "y"}', "line 2, cannot be used: prompt is empty"),
        ('{"prompt": "x", "answer": null}', "line 2, cannot be used: answer is null"),
        ('{"prompt": "x", "answer": true}', "line 2, cannot be used: answer is true or false"),
        ('{"prompt": "\\ud800", "answer": "y"}', "line 2, cannot be used: prompt has half of a surrogate pair"),
        ('{"prompt": "x", "answer": ' + "[" * 100_000, "line 2, is not JSON"),
    ],
)
def test_prompts_that_are_no_text_are_told_with_their_line(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "mine.jsonl").write_text(f'{{"prompt": "a", "answer": "b"}}\n{line}\n')
    with pytest.raises(UserError, match=message):
        load_task(str(tmp_path / "mine.jsonl"))


@pytest.mark.parametrize("name", ["my[v2]", "a%20b", "a*b", "what?", "a#b?c"])
def test_copies_of_benchmarks_may_lie_in_folders_of_any_name(tmp_path: Path, name: str) -> None:
    for other in ("my2", "aXb", "whatx"):
        (tmp_path / other).mkdir()
        write(tmp_path / other / "problems.jsonl", [{"x": 1}])
    (tmp_path / name).mkdir()
    file = write(tmp_path / name / "problems.jsonl", [PROBLEM])
    assert load_task("humaneval", TaskOptions(str(file), allow_code_execution=True)).prompts == [PROBLEM["prompt"]]


def test_so_may_the_harness_own(gsm8k: Path) -> None:
    folder = gsm8k / "my[v2]*"
    folder.mkdir()
    for file in ("train.jsonl", "test.jsonl"):
        (gsm8k / file).rename(folder / file)
    assert len(load_task("gsm8k", TaskOptions(str(folder))).prompts) == 5


def test_an_unknown_task_is_refused_and_the_known_are_named() -> None:
    with pytest.raises(UserError) as caught:
        load_task("gsm9k")
    assert all(name in str(caught.value) for name in ("gsm9k", *TASKS))


def test_data_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no train.jsonl and no test.jsonl"):
        load_task("gsm8k", TaskOptions(str(tmp_path)))
    with pytest.raises(UserError, match=r"lack entry_point, prompt, test"):
        load_task("humaneval", TaskOptions(str(write(tmp_path / "x.jsonl", [{"a": 1}])), allow_code_execution=True))
