"""All methods compared on a tiny model: the table, what is kept, and an interrupted comparison."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mft_ray.comparison import run as comparison
from mft_ray.comparison.run import compare, entries
from mft_ray.comparison.table import show
from mft_ray.config import METHODS, parse_config
from mft_ray.data import arithmetic
from mft_ray.errors import UserError
from mft_ray.evaluation.statistics import interval
from mft_ray.models.export import save_model
from mft_ray.models.loading import new_model

CHANGED = {
    "continued_fft": {},
    "lora": {"lora": {"rank": 2}},
    "l1_mask": {},
    "movement": {},
    "mft": {},
    "mft at half": {"method": "mft", "mask": {"ratio": 0.5}, "train": {"lr": 1e-2}},
    "too fast": {"method": "continued_fft", "fft": {"continued_lr": 1e30}},
    "fft with decay": {"method": "fft", "fft": {"train": {"weight_decay": 0.5, "steps": 20}}},
}


def test_a_row_is_the_configuration_with_its_changes(tiny: dict[str, Any]) -> None:
    rows = {row.name: row for row in entries(parse_config({**tiny, "compare": {"methods": CHANGED}}))}
    assert list(rows) == list(CHANGED)
    half, plain = rows["mft at half"], rows["mft"]
    assert (half.method, half.config.mask.ratio, half.config.train.lr) == ("mft", 0.5, 1e-2)
    assert (half.config.train.steps, half.config.mask.init) == (plain.config.train.steps, plain.config.mask.init)
    assert (rows["lora"].config.lora.rank, plain.config.lora.rank) == (2, 64)
    assert rows["fft with decay"].config.fft.train.weight_decay == 0.5


def test_by_default_every_method_is_compared(tiny: dict[str, Any]) -> None:
    assert {row.method for row in entries(parse_config(tiny))} == METHODS.keys() - {"fft"}
    listed = parse_config({**tiny, "compare": {"methods": ["fft", "mft", "lora"]}})
    assert [row.name for row in entries(listed)] == ["mft", "lora"]


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"sft": {}}, "sft is of method 'sft'; there are fft, continued_fft"),
        ({"mft": {"data": {}}}, "mft changes data; a row may change train, mask, lora, fft"),
        ([], "nothing to compare FFT with"),
    ],
)
def test_rows_that_cannot_be_are_refused(tiny: dict[str, Any], methods: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_config({**tiny, "compare": {"methods": methods}})


def test_a_rows_bad_setting_names_the_row(tiny: dict[str, Any]) -> None:
    config = parse_config({**tiny, "compare": {"methods": {"mft": {"train": {"lrr": 1}}}}})
    with pytest.raises(UserError, match=r"compare\.methods\.mft.*unknown key train\.lrr"):
        entries(config)


def test_a_row_that_the_model_cannot_have_is_refused_before_anything_is_written(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    rows = {"mft": {}, "lora": {"lora": {"layers": "4-7"}}}
    with pytest.raises(UserError, match="layer"):
        compare(parse_config({**tiny, "run": {"dir": str(tmp_path / "run")}, "compare": {"methods": rows}}))
    assert not (tmp_path / "run").exists()


def test_fft_again_is_refused_where_it_is_given(tiny: dict[str, Any], tmp_path: Path) -> None:
    start = new_model(tiny["model"]["architecture"], len(arithmetic.tokenizer()), 0)
    save_model(start, dict(start.named_parameters()), arithmetic.tokenizer(), tmp_path / "model")
    given = {"model": {"path": str(tmp_path / "model")}, "fft": {"given": True}, "run": {"dir": str(tmp_path / "run")}}
    with pytest.raises(UserError, match=r"compare\.methods\.again trains from the model before fine-tuning"):
        compare(parse_config({**tiny, **given, "compare": {"methods": {"again": {"method": "fft"}}}}))
    assert not (tmp_path / "run").exists()


class Run:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.content: dict[str, Any] = json.loads((root / "comparison.json").read_text())

    def table(self, on: str) -> dict[str, Any]:
        [found] = [table for table in self.content["scores"] if table["on"] == on]
        return dict(found)


@pytest.fixture(scope="module")
def run(
    ray_cluster: None, make_tiny: Callable[[], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, set[str]]:
    """A comparison that breaks off in the middle and is resumed; what the second session trained."""
    home = tmp_path_factory.mktemp("comparison")
    (home / "mine.jsonl").write_text("".join(f'{{"prompt": "{n}+2=", "answer": "{n + 2}"}}\n' for n in range(6)))
    tree = make_tiny()
    tree["run"]["dir"] = str(home / "run")
    tree["mask"] = {"ratio": 0.2, "init": "magnitude", "schedule": "anneal"}
    tree["evaluation"] |= {"tasks": [str(home / "mine.jsonl")], "task_max_new_tokens": 4}
    tree["compare"] = {"methods": CHANGED, "max_concurrent": 1}
    trained: set[str] = set()
    with pytest.MonkeyPatch.context() as patch:
        original = comparison._train

        def broken(row: Any, *rest: Any) -> Any:
            if row.name == "mft at half" and not trained:
                raise KeyboardInterrupt
            return original(row, *rest)

        patch.setattr(comparison, "_train", broken)
        with pytest.raises(KeyboardInterrupt):
            compare(parse_config(tree))
        done = {path.parent.name for path in (home / "run" / "methods").glob("*/outcome.json")}
        assert done
        assert not (home / "run" / "comparison.json").exists()
        before = {name: (home / "run" / "methods" / name / "outcome.json").stat().st_mtime_ns for name in done}
        trained.add("go on")
        compare(None, str(home / "run"))
    assert before == {name: (home / "run" / "methods" / name / "outcome.json").stat().st_mtime_ns for name in done}
    return Run(home / "run"), done


@pytest.mark.slow
@pytest.mark.core
def test_every_row_has_scores_with_intervals_and_a_cost(run: tuple[Run, set[str]]) -> None:
    content = run[0].content
    assert [row["name"] for row in content["rows"]] == ["fft", *CHANGED]
    done = [row for row in content["rows"] if row["name"] != "too fast"]
    for row in done:
        assert row["cost"].keys() == {"tokens", "flops", "seconds", "memory", "trainable", "artifact_bytes"}
        assert row["cost"]["artifact_bytes"] > 0
    budget = {row["cost"]["tokens"] for row in done if row["method"] not in ("fft", "l1_mask")}
    assert len(budget) == 1
    for table in content["scores"]:
        assert table["rows"].keys() == {row["name"] for row in done}
        for name, row in table["rows"].items():
            assert row["ci95"][0] <= row["score"] <= row["ci95"][1]
            assert row["delta_ci95"][0] <= row["delta_fft"] <= row["delta_ci95"][1]
            assert (row["p_value"] is None) == (name == "fft")
            assert name == "fft" or row["p_value"] <= row["p_holm"] <= 1


@pytest.mark.slow
@pytest.mark.core
def test_a_row_that_fails_leaves_the_others_alone(run: tuple[Run, set[str]]) -> None:
    [row] = [row for row in run[0].content["rows"] if row["name"] == "too fast"]
    assert "the loss or score is not finite" in row["error"]
    assert row["stopped_reason"] == "failed"
    console = Console(width=100, record=True)
    show(run[0].root / "comparison.json", console)
    assert "too fast has failed: the loss or score is not finite" in console.export_text()


@pytest.mark.slow
@pytest.mark.core
def test_scores_on_test_are_of_the_kept_examples(run: tuple[Run, set[str]]) -> None:
    table = run[0].table("test")
    assert (table["metric"], table["n"]) == ("exact_match", 50)
    for name, row in table["rows"].items():
        values = json.loads((run[0].root / "work" / "scores" / f"{name}-test-exact_match.json").read_text())
        assert row["score"] == pytest.approx(sum(values) / 50)
        assert row["ci95"] == pytest.approx(interval(values, binary=True))


@pytest.mark.slow
@pytest.mark.core
def test_benchmark_tasks_keep_their_texts(run: tuple[Run, set[str]]) -> None:
    root = run[0].root
    (name,) = (table["on"] for table in run[0].content["scores"] if table["on"] != "test")
    table = run[0].table(name)
    assert (table["metric"], table["n"]) == ("score", 6)
    for row, found in table["rows"].items():
        [file] = [path for path in (root / "work" / "tasks" / row).rglob("*.jsonl") if path.is_file()]
        scores = [json.loads(line)["scores"]["score"] for line in file.read_text().splitlines()[1:]]
        assert found["score"] == pytest.approx(sum(scores) / 6)


@pytest.mark.slow
@pytest.mark.core
def test_the_table_can_be_read(run: tuple[Run, set[str]]) -> None:
    lines = (run[0].root / "comparison.md").read_text().splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["fft", *CHANGED]
    console = Console(width=100, record=True)
    show(run[0].root / "comparison.json", console)
    text = console.export_text()
    for name in CHANGED:
        assert text.count(f" {name} ") >= 3  # two tables of scores, one of costs
    assert "…" not in text


@pytest.mark.slow
@pytest.mark.core
def test_a_finished_comparison_repeats_nothing(run: tuple[Run, set[str]], tmp_path: Path) -> None:
    root = run[0].root
    before = {path: path.stat().st_mtime_ns for path in root.glob("methods/*/outcome.json")}
    shutil.copy2(root / "comparison.json", tmp_path)
    compare(None, str(root))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert json.loads((root / "comparison.json").read_text()) == json.loads((tmp_path / "comparison.json").read_text())
