"""Benchmark tasks on a tiny model and a mask over it, as the command runs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from command_line import run_command

from mft_ray.config import EvaluationConfig
from mft_ray.data import arithmetic
from mft_ray.errors import UserError
from mft_ray.evaluation import loaded_model as judged
from mft_ray.evaluation.benchmark import answer_share, benchmark, load_tasks
from mft_ray.masking import MaskFile, MaskSettings, fingerprint, load_mask, save_mask
from mft_ray.models.export import load_masked, save_model
from mft_ray.models.loading import load_model, new_model

Command = Callable[..., dict[str, Any]]
PROMPTS = [f"{left}+{right}=" for left in range(10, 14) for right in range(20, 23)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tokenizer = arithmetic.tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    made = new_model({"model_type": "llama", **sizes, "max_position_embeddings": 64}, len(tokenizer), 0)
    made.config.pad_token_id, made.config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    torch.manual_seed(0)
    state = {name: torch.randn_like(parameter) * 0.5 for name, parameter in made.named_parameters()}
    save_model(made, state, tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def mask(model: Path) -> Path:
    file = model.parent / "mask.safetensors"
    loaded = load_model(model)
    names = [name for name, _ in loaded.named_parameters() if "layers.1" in name and "proj" in name]
    kept = {name: torch.rand(loaded.get_parameter(name).shape) > 0.5 for name in names}
    save_mask(file, MaskFile(kept, MaskSettings(ratio=0.5), fingerprint(loaded), ""))
    return file


@pytest.fixture
def task(tmp_path: Path) -> Path:
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    code = "UNTIL, MAX_NEW_TOKENS = [], 12\ndef score(example, text): return len(set(text))\n"
    (tmp_path / "code.py").write_text(code)
    return file


@pytest.fixture
def command(tmp_path: Path, task: Path) -> Command:
    def run(*arguments: str | Path, out: str = "out") -> dict[str, Any]:
        options = ["--tasks", f"{task}:{tmp_path / 'code.py'}", "--out", str(tmp_path / out), "--batch-size", "5"]
        run_command("evaluate", *arguments, *options)
        results: dict[str, Any] = json.loads((tmp_path / out / "results.json").read_text())
        return results[f"{task}:{tmp_path / 'code.py'}"]

    return run


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    [file] = folder.rglob(f"{name}.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_every_prompt_text_and_score_is_kept(command: Command, model: Path, tmp_path: Path) -> None:
    results = command(model)
    _, *rows = lines(tmp_path / "out", "tiny")
    assert [row["prompt"] for row in rows] == PROMPTS
    assert [row["scores"]["score"] for row in rows] == [len(set(row["text"])) for row in rows]
    mean = sum(row["scores"]["score"] for row in rows) / len(rows)
    assert results["tiny"]["score"] == results["tiny"]["metrics"]["score"]["score"] == pytest.approx(mean)
    assert (results["tiny"]["metric"], results["tiny"]["n"]) == ("score", len(PROMPTS))
    assert results["tiny"]["metrics"]["score"]["standard_error"] > 0
    assert all(0 < row["tokens"] <= 12 for row in rows)


def test_masks_share_the_backbone_and_leave_it_as_it_was(
    command: Command, model: Path, mask: Path, tmp_path: Path
) -> None:
    again = model.parent / "again.safetensors"
    again.write_bytes(mask.read_bytes())
    name = f"{mask.parent.name}-mask"
    command(model, mask, again)
    _, *masked = lines(tmp_path / "out", name)
    _, *plain = lines(tmp_path / "out", "tiny")
    assert [row["text"] for row in masked] != [row["text"] for row in plain]
    assert [row["text"] for row in lines(tmp_path / "out", "again")[1:]] == [row["text"] for row in masked]
    # The same as of the model that a mask makes.
    merged = load_masked(model, load_mask(mask))
    save_model(merged, dict(merged.named_parameters()), arithmetic.tokenizer(), tmp_path / "merged")
    command(tmp_path / "merged", out="other")
    assert [row["text"] for row in lines(tmp_path / "other", "merged")[1:]] == [row["text"] for row in masked]


def test_an_adapter_shares_the_backbone_too(command: Command, model: Path, mask: Path, tmp_path: Path) -> None:
    wrapped = peft.get_peft_model(
        load_model(model), peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    )
    wrapped.save_pretrained(str(tmp_path / "mine"))
    results = command(model, tmp_path / "mine", mask)
    assert list(results) == ["tiny", "mine", f"{mask.parent.name}-mask"]
    texts = {name: [row["text"] for row in lines(tmp_path / "out", name)[1:]] for name in results}
    assert texts["mine"] != texts["tiny"]
    # The same as of the model that an adapter makes, and the mask is on the plain backbone again.
    merged = wrapped.merge_and_unload()
    save_model(merged, dict(merged.named_parameters()), arithmetic.tokenizer(), tmp_path / "merged")
    command(tmp_path / "merged", out="other")
    assert [row["text"] for row in lines(tmp_path / "other", "merged")[1:]] == texts["mine"]
    name = f"{mask.parent.name}-mask"
    command(model, mask, out="third")
    assert [row["text"] for row in lines(tmp_path / "third", name)[1:]] == texts[name]


def test_a_folder_that_is_no_adapter_of_this_model_is_refused(command: Command, model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "adapter_config.json").write_text("{}")
    (tmp_path / "mine" / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be put on this model"):
        command(model, tmp_path / "mine")


def test_what_was_interrupted_goes_on(
    command: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(model, out="whole")
    whole = lines(tmp_path / "whole", "tiny")
    command(model, "--limit", "5")
    [file] = (tmp_path / "out").rglob("tiny.jsonl")
    begun = file.with_suffix(".begun.jsonl")
    # As a process leaves it that is killed while it writes the sixth text.
    text = file.read_text().splitlines()
    begun.write_text("\n".join([*text, '{"index": 5, "prompt": "1']))
    file.unlink()
    asked: list[int] = []
    original = judged.generate

    def counted(model: Any, tokenizer: Any, prompts: list[str], **options: Any) -> Any:
        asked.append(len(prompts))
        return original(model, tokenizer, prompts, **options)

    monkeypatch.setattr(judged, "generate", counted)
    command(model)
    assert asked == [len(PROMPTS) - 5]
    assert lines(tmp_path / "out", "tiny") == whole
    assert not begun.exists()
    command(model)
    assert asked == [len(PROMPTS) - 5]  # nothing is left to do


def test_results_of_something_else_are_not_continued(command: Command, model: Path, task: Path, tmp_path: Path) -> None:
    command(model)
    task.write_text('{"prompt": "another"}\n{"prompt": "one more"}\n')
    with pytest.raises(UserError, match="holds what another model, or other settings, answered"):
        command(model)
    [file] = (tmp_path / "out").glob("*/*.jsonl")
    file.write_text(file.read_text().splitlines()[0] + "\n")  # ended before its first answer: nothing is lost
    command(model)


def test_how_much_is_generated_can_be_said(command: Command, model: Path, tmp_path: Path) -> None:
    command(model, "--max-new-tokens", "3")
    _, *rows = lines(tmp_path / "out", "tiny")
    assert max(row["tokens"] for row in rows) == 3


@pytest.mark.parametrize("option", ["--limit", "--max-new-tokens", "--batch-size"])
def test_counts_begin_at_one(command: Command, model: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command(model, option, "0")
    assert "must be a whole number from 1, got '0'" in capsys.readouterr().err


def test_one_example_is_too_few(command: Command, model: Path, task: Path, tmp_path: Path) -> None:
    task.write_text('{"prompt": "alone"}\n')
    with pytest.raises(UserError, match=r"has 1 example\(s\) here; an error of its score needs at least two"):
        command(model)
    assert not (tmp_path / "out").exists()


def test_a_mask_of_another_model_is_refused(command: Command, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_mask(file, MaskFile({"a": torch.ones(2, 2, dtype=torch.bool)}, MaskSettings(), "0" * 64, ""))
    with pytest.raises(UserError, match="learned on another backbone"):
        command(model, file)


@pytest.mark.parametrize("arguments", [["--tasks", "gsm8k"], ["M", "--tasks", "gsm8k"], ["M"], ["--out", "x"]])
def test_half_an_order_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run_command("evaluate", *arguments)
    assert caught.value.code == 2


def test_data_of_a_task_that_is_not_asked_for_is_refused() -> None:
    with pytest.raises(UserError, match="--data names gsm8k"):
        run_command("evaluate", "M", "--tasks", "ifeval", "--data", "gsm8k=x", "--out", "y")


def test_shares_of_several_processes_are_put_together(
    model: Path, mask: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has its own; what one leaves undone is done by whoever puts them together, and no text is made twice."""
    out, whole = tmp_path / "shared", tmp_path / "whole"
    backbone = judged.Backbone(str(model))
    one = backbone.having(str(mask), "mask")
    tasks = load_tasks([f"{task}:{tmp_path / 'code.py'}"], EvaluationConfig(), backbone.tokenizer)
    list(answer_share(backbone, one, tasks, out, 5, 0, 3))
    made: list[int] = []
    generate = backbone.generate

    def counted(prompts: list[str], **options: Any) -> Any:
        made.append(len(prompts))
        for count, text in enumerate(generate(prompts, **options)):
            if len(made) == 1 and count == 2:
                raise OSError("the process dies")
            yield text

    monkeypatch.setattr(backbone, "generate", counted)
    with pytest.raises(OSError, match="dies"):
        list(answer_share(backbone, one, tasks, out, 1, 2, 3))
    list(answer_share(backbone, one, tasks, out, 5, 1, 2))  # another number of them, after a resume
    told = list(benchmark(backbone, [one], tasks, out, 5))
    assert not list(out.glob("~share-*"))
    # Of 12: numbers 0, 3, 6, 9; then 2 and 5 of a share of four; then 1, 7, 11; then 4, 8, 10.
    assert made == [4, 3, 3]
    list(benchmark(backbone, [one], tasks, whole, 5))
    assert lines(out, "mask") == lines(whole, "mask")
    assert told[-1].startswith(f"{tasks[0].name}, mask: score ")
