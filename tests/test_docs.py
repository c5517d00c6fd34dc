"""docs/your_own_task.md, run as it stands there."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path

import pytest
import torch
from command_line import run_command

from mft_ray.config import Config
from mft_ray.data import arithmetic
from mft_ray.evaluation.tasks import load_task
from mft_ray.masking import MaskFile, MaskSettings, fingerprint, save_mask
from mft_ray.models.export import save_model
from mft_ray.models.loading import load_model, new_model

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "your_own_task.md").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the page's files are, beside a tiny model and a mask."""
    tokenizer = arithmetic.tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    made = new_model({"model_type": "llama", **sizes, "max_position_embeddings": 512}, len(tokenizer), seed=0)
    save_model(made, dict(made.named_parameters()), tokenizer, tmp_path / "my-model")
    model, name = load_model(tmp_path / "my-model"), "model.layers.1.mlp.up_proj.weight"
    kept = {name: torch.rand(model.get_parameter(name).shape) > 0.5}
    save_mask(tmp_path / "mask.safetensors", MaskFile(kept, MaskSettings(ratio=0.5), fingerprint(model), ""))
    for file, content in re.findall(r"`([\w.]+)`[^\n`]*:\n\n```(?:json|python)\n(.*?)```", PAGE, re.DOTALL):
        (tmp_path / file).write_text(content, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_its_commands_leave_what_it_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = [shlex.split(block) for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)]
    assert [command[:2] for command in commands] == [["mft-ray", "evaluate"], ["mft-ray", "evaluate"], ["python", "-c"]]
    for _, *arguments in commands[:2]:
        run_command(*arguments)
    capsys.readouterr()
    exec(commands[2][2], {})
    assert "'n': 3" in capsys.readouterr().out
    results = json.loads(Path("scores/results.json").read_text())
    assert {task: len(models) for task, models in results.items()} == {"capitals.jsonl": 2, "fruits.jsonl:fruits.py": 2}
    [file] = re.findall(r"`(scores/[^`]*\.jsonl)`", PAGE)
    _, *rows = [json.loads(line) for line in Path(file).read_text().splitlines()]
    score = runpy.run_path("fruits.py")["score"]
    assert [row["scores"]["score"] for row in rows] == [
        score({"wanted": wanted}, row["text"]) for wanted, row in zip((3, 5), rows, strict=True)
    ]


@pytest.mark.usefixtures("folder")
def test_its_tasks_score_as_it_says() -> None:
    [right] = re.findall(r"so `([^`]*)` is right", PAGE)
    answers = load_task("capitals.jsonl")
    assert [row["score"] for row in answers.score([" Paris", " LIMA ", right])] == [1, 1, 1]
    assert [row["score"] for row in answers.score([" Rome", "", " $400"])] == [0, 0, 0]
    fruits = load_task("fruits.jsonl:fruits.py")
    assert [row["score"] for row in fruits.score([" apples, pears, Apples", "a,b,c,d,e"])] == [pytest.approx(2 / 3), 1]
    assert (fruits.until, fruits.max_new_tokens) == (["\n", "."], 40)


def test_the_page_of_checkpoints_names_commands_and_settings_that_there_are() -> None:
    page = (DOCS / "checkpoints.md").read_text(encoding="utf-8")
    for setting in re.findall(r"`((?:model|data|run|compare|study)\.\w+)", page):
        section, name = setting.split(".")
        assert name in Config.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
    [command] = re.findall(r"`mft-ray export ([^`]*)`", page)
    assert re.findall(r"--\w+", command) == ["--backbone", "--adapter", "--out"]
