"""What commands print for a program, and what they leave out where only the result is wanted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_models import save_tiny

from mft_ray.cli.main import NAMES, main, parser
from mft_ray.masking import MaskFile, Masks, MaskSettings, fingerprint, save_mask
from mft_ray.models.loading import load_model

LONG = {"tune", "compare", "experiment", "train", "score", "evaluate", "pick", "push"}
SHORT = {"plan", "export", "inspect"}


def options_of(name: str) -> set[str]:
    [each] = [action for action in parser((name,))._actions if action.dest == "command"]
    assert isinstance(each.choices, dict)
    return {option for action in each.choices[name]._actions for option in action.option_strings}


def test_who_takes_long_can_be_quiet_and_who_has_a_result_can_print_it_for_a_program() -> None:
    assert {name for name in NAMES if "--quiet" in options_of(name)} == LONG
    assert {name for name in NAMES if "--json" in options_of(name)} == LONG | SHORT


@pytest.fixture
def masked(tmp_path: Path) -> tuple[Path, Path]:
    model = save_tiny(tmp_path / "model")
    loaded = load_model(model)
    settings, backbone = MaskSettings(ratio=0.3), fingerprint(loaded)
    save_mask(tmp_path / "mask.safetensors", MaskFile(Masks(loaded, settings).masks(), settings, backbone))
    return model, tmp_path / "mask.safetensors"


def test_export(masked: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, mask = masked
    out = tmp_path / "out"
    assert main(["export", "--backbone", str(model), "--mask", str(mask), "--out", str(out), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {"schema": 1, "model": str(out), "trial": None}
    assert "AutoModelForCausalLM" in said.err


def test_evaluate(masked: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": "1+2=", "answer": "3"}, {"prompt": "2+2=", "answer": "4"}]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = ["--tasks", str(tmp_path / "mine.jsonl"), "--out", str(tmp_path / "out"), "--max-new-tokens", "2"]
    command = ["evaluate", str(masked[0]), *asked]
    assert main([*command, "--json"]) == 0
    said = capsys.readouterr()
    [[task, models]] = json.loads(said.out).items()
    [[name, scores]] = models.items()
    assert scores["n"] == 2
    assert f"{task}, {name}:" in said.err
    assert main([*command, "--quiet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"{task}, {name}", "prompts, texts and scores"]


@pytest.mark.parametrize(
    "given",
    [
        ["score", "--config", "none.yaml"],
        ["train", "--method", "mft", "--config", "quickstart", "--out", "x"],
        ["compare", "--json"],
        ["pick", "none", "abc"],
        ["plan", "--config", "none.yaml"],
        ["export", "none", "--out", "x"],
    ],
)
def test_a_mistake_is_one_line_and_no_document(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*given, "--json"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1


@pytest.mark.slow
def test_train_score_and_compare(
    ray_cluster: None, make_tiny: Callable[[], dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = make_tiny() | {"compare": {"methods": {"l1_mask": {}}}}
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(tree))
    assert main(["train", "--method", "fft", "--config", str(file), "--out", str(tmp_path / "fft"), "--json"]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert trained["path"] == str(tmp_path / "fft" / "best")
    assert trained["history"][trained["best"]]["score"] >= 0

    assert main(["score", "--config", str(file), "--model", trained["path"], "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert (scored["split"], scored["metric"], scored["n"]) == ("validation", "exact_match", 40)

    said = f"run.dir={tmp_path / 'compared'}"
    assert main(["compare", "--config", str(file), "--set", said, "--quiet", "--json"]) == 0
    out, err = capsys.readouterr()
    compared = json.loads(out)
    assert [row["name"] for row in compared["comparison"]["rows"]] == ["fft", "l1_mask"]
    assert Path(compared["table"]).exists()
    assert "1/4" not in err
