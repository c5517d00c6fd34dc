"""`mft-ray init`: what it writes for a model and data is a configuration that a search would begin with."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_models import save_tiny

from mft_ray.cli.main import main
from mft_ray.config import Config, load_config
from mft_ray.preflight import first_config as module
from mft_ray.preflight.first_config import first_config
from mft_ray.runs.prepare import check
from mft_ray.searches.checks import check_search
from mft_ray.workers.machine import Card, Machine, this_machine


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "my model")


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def asked(count: int, prompt: str = "prompt", answer: str = "response", long: int = 1) -> list[dict[str, Any]]:
    return [{prompt: f"What is {n}?", answer: f"It is {n}." * long} for n in range(count)]


def read(text: str, tmp_path: Path) -> Config:
    (tmp_path / "read.yaml").write_text(text)
    return load_config(tmp_path / "read.yaml")


MESSAGES = [
    {"messages": [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": f"{n}!"}]}
    for n in range(40)
]


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [
        ("chat.jsonl", MESSAGES, {}),
        ("pairs.jsonl", asked(40), {"prompt_column": "prompt", "answer_column": "response"}),
        ("sheet.csv", asked(40, "question", "answer"), {"prompt_column": "question", "answer_column": "answer"}),
        (
            "share.jsonl",
            [{"conversations": row["messages"]} for row in MESSAGES],
            {"messages_column": "conversations"},
        ),
    ],
)
def test_what_it_writes_is_what_a_search_begins_with(
    name: str, rows: list[dict[str, Any]], columns: dict[str, str], model: Path, tmp_path: Path
) -> None:
    text = first_config(str(model), str(written(tmp_path / name, rows)))
    config = read(text, tmp_path)
    given = {key: getattr(config.data, key) for key in ("messages_column", "prompt_column", "answer_column")}
    assert {key: value for key, value in given.items() if value is not None} == columns
    assert config.search.space.layers == ["0-1", "2-3", "4-5"]
    assert (config.data.n_validation, config.data.n_test) == (4, 8)
    assert config.run.name == "my-model"
    check(config.seeded(), check_search)  # what a search does before it writes anything
    assert "40 rows" in text


def test_short_answers_are_to_be_met_exactly_and_long_ones_to_be_likely(model: Path, tmp_path: Path) -> None:
    short = read(first_config(str(model), str(written(tmp_path / "a.jsonl", asked(40)))), tmp_path)
    long = read(first_config(str(model), str(written(tmp_path / "b.jsonl", asked(40, long=9)))), tmp_path)
    assert (short.evaluation.metric, long.evaluation.metric) == ("exact_match", "answer_logprob")
    assert short.data.max_length == 64
    assert 100 < long.data.max_length <= 192


def test_a_model_without_a_chat_template_gets_one(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "base", template=None)
    config = read(first_config(str(model), str(written(tmp_path / "a.jsonl", asked(40)))), tmp_path)
    assert config.data.chat_template == "tulu"


def test_a_test_file_of_ones_own_is_used_whole(model: Path, tmp_path: Path) -> None:
    train, test = (str(written(tmp_path / f"{name}.jsonl", asked(count))) for name, count in (("a", 40), ("b", 25)))
    config = read(first_config(str(model), train, test, fine_tuned=True), tmp_path)
    assert (config.data.test, config.data.n_test, config.fft.given) == (test, 25, True)


@pytest.mark.parametrize(
    ("cards", "expected"),
    [
        (0, {"workers": 1, "gpus_per_worker": 0, "compute": "auto"}),
        (1, {"workers": 1, "gpus_per_worker": 1, "zero_stage": 0, "compute": "auto"}),
    ],
)
def test_what_a_trial_asks_for_is_what_the_machine_has(
    cards: int, expected: dict[str, Any], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Machine(**{**vars(this_machine()), "cards": (Card("H100", 80 * 2**30, "1"),) * cards, "cuda": "13.0"})
    monkeypatch.setattr(module, "this_machine", lambda: there)
    config = read(first_config(str(model), str(written(tmp_path / "a.jsonl", asked(40)))), tmp_path)
    assert {name: getattr(config.scaling, name) for name in expected} == expected


def test_a_model_that_is_too_large_for_one_card_is_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    there = Machine(**{**vars(this_machine()), "cards": (Card("A", 24 * 2**30, "1"),) * 8, "cuda": "13.0"})
    scaling, why = module._scaling(7_000_000_000, there)
    assert (scaling["workers"], scaling["zero_stage"]) == (7, 3)
    assert "126" in why or "117" in why
    _, why = module._scaling(70_000_000_000, there)
    assert "more than these GPUs have" in why


@pytest.mark.parametrize(
    ("rows", "options", "says"),
    [
        (asked(40, "ask", "reply"), [], "Name two of them with --prompt-column and --answer-column"),
        (asked(40, "ask", "reply"), ["--prompt-column", "ask"], "Give both --prompt-column and --answer-column"),
        (asked(40, "ask", "reply"), ["--prompt-column", "ask", "--answer-column", "rep"], "rep"),
        (asked(5), [], "has 5 rows"),
    ],
)
def test_what_cannot_work_is_told_and_nothing_is_written(
    rows: list[dict[str, Any]], options: list[str], says: str, model: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    train = written(tmp_path / "rows.jsonl", rows)
    out = tmp_path / "mine.yaml"
    assert main(["init", "--model", str(model), "--train", str(train), "--out", str(out), *options]) == 2
    assert says in capsys.readouterr().err
    assert not out.exists()


def test_the_command_writes_the_file_once(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, out = written(tmp_path / "a.jsonl", asked(40, "ask", "reply")), tmp_path / "mine.yaml"
    given = ["init", "--model", str(model), "--train", str(train), "--out", str(out)]
    given += ["--prompt-column", "ask", "--answer-column", "reply"]
    assert main(given) == 0
    assert f"mft-ray tune --config {out}" in capsys.readouterr().out
    assert yaml.safe_load(out.read_text())["data"]["prompt_column"] == "ask"
    before = out.read_bytes()
    assert main(given) == 2
    assert "There is a file" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_names_that_yaml_would_read_otherwise_are_in_quotes(
    tmp_path: Path, make_tiny: Callable[[], dict[str, Any]]
) -> None:
    model = save_tiny(tmp_path / "1e3")
    train = written(tmp_path / "yes: no #x.jsonl", asked(40))
    config = read(first_config(str(model), str(train)), tmp_path)
    assert (config.run.name, config.data.train) == ("1e3", str(train))
