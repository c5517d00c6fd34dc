"""AlpacaEval: what is said before anything is generated, what the judge gets, and what is made of what it says."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import pandas as pd  # type: ignore[import-untyped]
import pytest

from mft_ray.errors import UserError
from mft_ray.evaluation.tasks import Task, TaskOptions, load_task
from mft_ray.evaluation.tasks.alpaca import AlpacaTask, example_scores

REFERENCE = [
    {"instruction": f"Say {n}.", "output": f"{n}" * 9, "generator": "gpt4_1106_preview", "dataset": "helpful_base"}
    for n in range(3)
]
# As alpaca-eval 0.6.6 wrote them, its judge's log-probabilities cut off: `annotations.json` after the regression.
RECORDED = json.loads(
    """[
 {"instruction": "Say 0.", "output_1": "000000000", "generator_1": "gpt4_1106_preview", "dataset": "helpful_base",
  "output_2": "nought", "generator_2": "mft_ray", "annotator": "weighted_alpaca_eval_gpt4_turbo",
  "preference": 1.0174227867, "glm_preference": 0.125},
 {"instruction": "Say 1.", "output_1": "111111111", "generator_1": "gpt4_1106_preview", "dataset": "helpful_base",
  "output_2": "one", "generator_2": "mft_ray", "annotator": "weighted_alpaca_eval_gpt4_turbo",
  "preference": 1.9825772133, "glm_preference": 0.75},
 {"instruction": "Say 2.", "output_1": "222222222", "generator_1": "gpt4_1106_preview", "dataset": "helpful_base",
  "output_2": "222222222", "generator_2": "mft_ray", "annotator": "weighted_alpaca_eval_gpt4_turbo",
  "preference": 1.5, "glm_preference": 0.5}]"""
)


class Judge:
    """Stands in for alpaca-eval's, with its interface: an answer that is longer than ten letters gets no answer."""

    asked: Sequence[Mapping[str, str]] = ()

    def __init__(self, annotators_config: str) -> None:
        assert annotators_config == "weighted_alpaca_eval_gpt4_turbo"
        self.df_annotations, self.is_store_missing_annotations = None, True

    def annotate_head2head(
        self, outputs_1: list[dict[str, str]], outputs_2: list[dict[str, str]], *, is_ordered: bool = False
    ) -> list[dict[str, Any]]:
        assert is_ordered
        Judge.asked = outputs_2
        return [
            {**row, "preference": None if len(other["output"]) > 10 else row["preference"]}
            for row, other in zip(RECORDED, outputs_2, strict=True)
        ]


def regress(annotations: pd.DataFrame, *, save_weights_dir: str | None = "auto") -> dict[str, float]:
    assert save_weights_dir is None  # or it would write into the package
    annotations["glm_preference"] = [row["glm_preference"] for row in RECORDED]
    return {}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has the package, a key and the hub's files."""
    spec = importlib.util.spec_from_loader("alpaca_eval", None)
    for name, contents in {
        "": {},
        ".annotators": {"PairwiseAnnotator": Judge},
        ".metrics": {"get_length_controlled_winrate": regress},
    }.items():
        module = types.ModuleType(f"alpaca_eval{name}")
        module.__spec__ = spec
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, f"alpaca_eval{name}", module)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: "df_gamed.csv")


@pytest.fixture
def data(tmp_path: Path) -> str:
    file = tmp_path / "reference.json"
    file.write_text(json.dumps(REFERENCE))
    return str(file)


@pytest.fixture
def task(machine: None, data: str) -> Task:
    return load_task("alpaca_eval", TaskOptions(data))


def test_prompts_are_the_instructions(task: Task, data: str) -> None:
    assert task.prompts == ["Say 0.", "Say 1.", "Say 2."]

    def chat(turns: list[dict[str, str]]) -> str:
        [turn] = turns
        return f"<{turn['role']}>{turn['content']}<assistant>"

    assert load_task("alpaca_eval", TaskOptions(data, chat=chat, limit=1)).prompts == ["<user>Say 0.<assistant>"]


def test_the_judge_gets_answers_in_alpaca_evals_own_form(task: Task) -> None:
    scores = task.score([" nought\n", "one", "222222222"])
    assert [dict(row) for row in Judge.asked] == [
        {"instruction": "Say 0.", "output": "nought", "generator": "mft_ray"},
        {"instruction": "Say 1.", "output": "one", "generator": "mft_ray"},
        {"instruction": "Say 2.", "output": "222222222", "generator": "mft_ray"},
    ]
    assert scores == example_scores(RECORDED)
    # Their means are what alpaca-eval reports.
    assert task.summarise(scores) == {
        "length_controlled_winrate": pytest.approx(100 * (0.125 + 0.75 + 0.5) / 3),
        "win_rate": pytest.approx(50.0),
    }
    assert scores[0]["win_rate"] == pytest.approx(1.74, abs=0.01)


def test_a_judge_that_fails_gives_no_score(task: Task) -> None:
    with pytest.raises(UserError, match="nothing usable about 2 of 3 answers"):
        task.score(["no", "a longer answer", "another long answer"])


@pytest.mark.usefixtures("machine")
def test_what_is_missing_is_said_before_anything_is_generated(
    tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(file: str = data) -> Task:
        return load_task("alpaca_eval", TaskOptions(file))

    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps([{"instruction": "x"}]))
    with pytest.raises(UserError, match="lacks output"):
        load(str(bare))
    with pytest.raises(UserError, match="--data alpaca_eval=FILE"):
        load(str(tmp_path / "none.json"))

    def unreachable(*_: Any, **__: Any) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("offline")

    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub, "hf_hub_download", unreachable)
        with pytest.raises(UserError, match=r"df_gamed\.csv"):
            load()
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        load()
    monkeypatch.delitem(sys.modules, "alpaca_eval")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'mft_ray\[alpaca\]'"):
        load()


def test_its_metric_is_the_published_one() -> None:
    assert AlpacaTask.metric == "length_controlled_winrate"
    assert AlpacaTask.metric in example_scores(RECORDED)[0]
