"""How entry points end: help, a user's mistake, and an exported model. None of it needs a Ray."""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mft_ray.cli.main import NAMES, ended, main
from mft_ray.cli.options import add_config, read_config
from mft_ray.data import arithmetic
from mft_ray.errors import RunFailed, UserError
from mft_ray.masking import MaskFile, Masks, MaskSettings, fingerprint, load_mask, save_mask
from mft_ray.models.export import save_model
from mft_ray.models.loading import load_model, load_tokenizer, new_model

SMALL = {"max_position_embeddings": 32}
LLAMA = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, **SMALL}
ARCHITECTURES: dict[str, tuple[dict[str, Any], torch.dtype]] = {
    "llama, tied": ({**LLAMA, "num_hidden_layers": 3, "tie_word_embeddings": True}, torch.float32),
    "llama, bf16": ({**LLAMA, "num_hidden_layers": 2, "tie_word_embeddings": False}, torch.bfloat16),
    "gpt2": ({"model_type": "gpt2", "n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 32}, torch.float32),
}


@dataclass
class Given:
    """What a user has: the checkpoint of a fine-tuned model, and a mask learned on it."""

    backbone: Path
    mask: Path

    def export_to(self, out: Path) -> list[str]:
        return ["--backbone", str(self.backbone), "--mask", str(self.mask), "--out", str(out)]


def save_backbone(folder: Path, architecture: dict[str, Any], dtype: torch.dtype, seed: int = 0) -> None:
    tokenizer = arithmetic.tokenizer()
    model = new_model(architecture, len(tokenizer), seed)
    state = {name: parameter.detach().to(dtype) for name, parameter in model.named_parameters()}
    save_model(model, state, tokenizer, folder)


def give(folder: Path, architecture: dict[str, Any], dtype: torch.dtype) -> Given:
    given = Given(folder / "backbone", folder / "mask.safetensors")
    save_backbone(given.backbone, architecture, dtype)
    model = load_model(given.backbone)
    settings, backbone = MaskSettings(ratio=0.3), fingerprint(model)
    save_mask(given.mask, MaskFile(Masks(model, settings).masks(), settings, backbone))
    return given


@pytest.fixture(params=ARCHITECTURES)
def each(request: pytest.FixtureRequest, tmp_path: Path) -> Given:
    return give(tmp_path, *ARCHITECTURES[request.param])


@pytest.fixture
def given(tmp_path: Path) -> Given:
    return give(tmp_path, *ARCHITECTURES["llama, tied"])


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"model": {"architecture": ARCHITECTURES["llama, tied"][0]}}))
    return path


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[[str, list[str]], str]:
    """Call an entry point with bad arguments, in this process; returns the paragraph that it prints."""

    def call(entry: str, arguments: list[str]) -> str:
        assert main([entry, *arguments]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        return one_paragraph(printed.err)

    return call


def one_paragraph(text: str) -> str:
    assert text.startswith("error: ")
    assert text.endswith((".", ".\n"))
    assert "Traceback" not in text
    assert text.strip().count("\n") == 0
    return text


def called(entry: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mft_ray", entry, *arguments],
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
    )


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("entry", NAMES)
def test_help_names_the_command_and_shows_examples(entry: str) -> None:
    ended = called(entry, "--help")
    assert ended.returncode == 0
    assert ended.stdout.startswith(f"usage: mft-ray {entry} ")
    assert f"\nexamples:\n  mft-ray {entry}" in ended.stdout
    assert ended.stderr == ""


@pytest.mark.parametrize(
    ("entry", "arguments", "says"),
    [
        ("tune", ["--config", "none.yaml"], "Cannot read the config none.yaml: No such file"),
        ("train", ["--method", "mft", "--config", "{config}", "--out", "out"], "give model.path"),
        ("score", ["--config", "{config}"], "Give --model"),
        ("export", ["--backbone", "x", "--mask", "none", "--out", "out"], "There is no mask file none"),
    ],
)
def test_a_users_mistake_ends_a_process_with_2_and_one_paragraph(
    entry: str, arguments: list[str], says: str, config: Path, tmp_path: Path
) -> None:
    ended = called(entry, *(argument.format(config=config) for argument in arguments), MFT_RAY_LAUNCH_DIR=str(tmp_path))
    assert ended.returncode == 2, ended.stderr
    assert says in one_paragraph(ended.stderr)
    assert ended.stdout == ""
    assert os.listdir(tmp_path) == ["config.yaml"]


@pytest.mark.parametrize(
    ("entry", "arguments"),
    [
        ("tune", ["--confg", "x"]),
        ("train", ["--method", "sft", "--config", "x", "--out", "y"]),
        ("score", ["--config", "x", "--split", "train"]),
        ("evaluate", ["MODEL", "--out", "x"]),
        ("experiment", ["sparsity", "--config", "x"]),
        ("export", ["--mask", "x"]),
    ],
)
def test_bad_arguments_end_with_2_and_the_usage(
    entry: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([entry, *arguments])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: ")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("mask.ratio=1.0", "masking ratio 1.0 is outside [0, 1)"),
        ("search.space.ratio=[0.1, 1.5]", "search.space.ratio.1: got 1.5"),
        ("mask.sparsity=0.9", "unknown key mask.sparsity"),
        ("mask.layers=0-9", "layer group 0-9"),
        ("search.space.layers=[0-9]", "layer group 0-9"),
        ("model={path: ./nowhere}", "There is no model folder ./nowhere"),
        ("model.architecture={model_type: nonsense}", "makes no causal LM"),
        ("data.task=chat", "which only the arithmetic task has"),
        ("train.micro_batch_size=7", "it is called train.micro_batch_tokens (of tokens, not examples) now"),
        ("fft.given=true", "fft.given"),
    ],
)
def test_a_search_that_cannot_work_is_refused_before_anything_is_written(
    override: str, says: str, config: Path, tmp_path: Path, refused: Callable[[str, list[str]], str]
) -> None:
    out = tmp_path / "run"
    arguments = ["--config", str(config), "--set", "data.task=arithmetic", "--set", override]
    assert says in refused("tune", [*arguments, "--set", f"run.dir={out}"])
    assert not out.exists()


@pytest.mark.parametrize(("entry", "first"), [("tune", []), ("compare", []), ("experiment", ["ratio"])])
def test_a_long_command_takes_a_config_or_a_run_to_resume(
    entry: str, first: list[str], config: Path, refused: Callable[[str, list[str]], str]
) -> None:
    either = "Give either --config FILE for a new run or --resume RUN"
    assert either in refused(entry, first)
    assert either in refused(entry, [*first, "--config", str(config), "--resume", "RUN"])
    # --set is over the run's own configuration; test_settled has what it may change there.
    said = refused(entry, [*first, "--resume", "RUN", "--set", "search.trials=4"])
    assert "Cannot read the config RUN/config.yaml" in said


def test_a_mask_run_on_a_layer_group_that_the_model_lacks(
    given: Given, tmp_path: Path, refused: Callable[[str, list[str]], str]
) -> None:
    path = tmp_path / "mft.yaml"
    tree = {"model": {"path": str(given.backbone)}, "data": {"task": "arithmetic"}, "mask": {"layers": "2-3"}}
    path.write_text(yaml.safe_dump(tree))
    text = refused("train", ["--method", "mft", "--config", str(path), "--out", str(tmp_path / "out")])
    assert "layer group 2-3" in text
    assert not (tmp_path / "out").exists()


def test_score_finds_what_is_wrong_before_it_starts_anything(
    given: Given, config: Path, tmp_path: Path, refused: Callable[[str, list[str]], str]
) -> None:
    arguments = ["--config", str(config), "--model"]
    assert "There is no model folder" in refused("score", [*arguments, str(tmp_path / "none")])
    assert "There is no mask file" in refused("score", [*arguments, str(given.backbone), "--mask", "none"])
    save_backbone(tmp_path / "other", LLAMA | {"num_hidden_layers": 3}, torch.float32, seed=1)
    text = refused("score", [*arguments, str(tmp_path / "other"), "--mask", str(given.mask)])
    assert "another backbone" in text
    long = [*arguments, str(given.backbone), "--set", "data.max_length=5000"]
    assert "data.max_length is 5,000, and the model has 32 positions" in refused("score", long)
    scored = [*arguments, str(given.backbone), "--out"]
    assert "--out is" in refused("score", [*scored, str(tmp_path)])
    assert "cannot be written" in refused("score", [*scored, "/proc/scores/a.json"])


def test_export_is_the_backbone_with_masked_weights_bit_for_bit(
    each: Given, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "model"
    before = snapshot(each.backbone)
    assert main(["export", *each.export_to(out)]) == 0
    said = capsys.readouterr().out
    assert f"wrote {out}" in said
    assert f"{each.mask}: {load_mask(each.mask)}" in said
    assert snapshot(each.backbone) == before

    backbone = AutoModelForCausalLM.from_pretrained(each.backbone, dtype="auto")
    exported, loading = AutoModelForCausalLM.from_pretrained(out, dtype="auto", output_loading_info=True)
    assert not any(loading.values())
    masks = load_mask(each.mask).masks
    weights = dict(backbone.named_parameters())
    assert masks.keys() < weights.keys()
    assert dict(exported.named_parameters()).keys() == weights.keys()
    for name, weight in exported.named_parameters():
        assert weight.dtype == weights[name].dtype
        assert torch.equal(weight, weights[name] * masks[name] if name in masks else weights[name])
    tied = exported.get_input_embeddings().weight is exported.get_output_embeddings().weight
    assert tied == backbone.config.tie_word_embeddings
    assert [entry.name for entry in out.parent.iterdir()] == [out.name]


def test_an_exported_model_answers_as_the_masked_one(each: Given, tmp_path: Path) -> None:
    out = tmp_path / "model"
    export_model(each, out)
    masks = Masks(load_model(each.backbone).eval(), MaskSettings(ratio=0.3))
    tokens = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        assert torch.equal(load_model(out).eval()(tokens).logits, masks.model(tokens).logits)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer("12+3=")["input_ids"] == load_tokenizer(each.backbone)("12+3=")["input_ids"]


def export_model(given: Given, out: Path) -> None:
    from mft_ray.models.artifacts import export as write

    write(str(given.backbone), str(given.mask), out)


def test_export_into_an_empty_folder_leaves_its_neighbours_alone(given: Given, tmp_path: Path) -> None:
    for name in ("model", "model.old", "model.partial"):
        (tmp_path / name).mkdir()
    (tmp_path / "model.old" / "mine").write_text("keep")
    export_model(given, tmp_path / "model")
    assert (tmp_path / "model" / "config.json").is_file()
    assert (tmp_path / "model.old" / "mine").read_text() == "keep"
    assert (tmp_path / "model.partial").is_dir()


def test_export_into_this_folder(given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export_model(given, Path("."))
    assert (tmp_path / "here" / "config.json").is_file()


def spoil_another_backbone(given: Given, out: Path) -> None:
    shutil.rmtree(given.backbone)
    save_backbone(given.backbone, *ARCHITECTURES["llama, tied"], seed=1)


def spoil_truncated_mask(given: Given, out: Path) -> None:
    given.mask.write_bytes(given.mask.read_bytes()[:-100])


def spoil_damaged_mask(given: Given, out: Path) -> None:
    raw = bytearray(given.mask.read_bytes())
    raw[-1] ^= 1
    given.mask.write_bytes(raw)


def spoil_foreign_mask(given: Given, out: Path) -> None:
    shutil.copy(given.backbone / "model.safetensors", given.mask)


def spoil_truncated_backbone(given: Given, out: Path) -> None:
    weights = given.backbone / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def spoil_missing_backbone(given: Given, out: Path) -> None:
    shutil.rmtree(given.backbone)


def spoil_full_folder(given: Given, out: Path) -> None:
    out.mkdir()
    (out / "mine").write_text("keep")


def spoil_file_for_folder(given: Given, out: Path) -> None:
    out.write_text("keep")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (spoil_another_backbone, "learned on another backbone"),
        (spoil_truncated_mask, "is truncated or damaged"),
        (spoil_damaged_mask, "checksum does not match"),
        (spoil_foreign_mask, "not a mask that this version reads"),
        (spoil_truncated_backbone, "Cannot load a model from"),
        (spoil_missing_backbone, "There is no model folder"),
        (spoil_full_folder, "is not empty. Give an empty or a new folder"),
        (spoil_file_for_folder, "is a file. Give an empty or a new folder"),
    ],
)
def test_an_export_that_cannot_be_right_is_refused_and_writes_nothing(
    spoil: Callable[[Given, Path], None],
    says: str,
    given: Given,
    tmp_path: Path,
    refused: Callable[[str, list[str]], str],
) -> None:
    out = tmp_path / "model"
    spoil(given, out)
    before = snapshot(tmp_path)
    text = refused("export", given.export_to(out))
    assert says in text
    assert snapshot(tmp_path) == before
    assert not list(tmp_path.glob(".*"))


def test_export_below_a_file_is_refused(given: Given, tmp_path: Path, refused: Callable[[str, list[str]], str]) -> None:
    assert "Cannot write the model to" in refused("export", given.export_to(given.mask / "model"))


def test_a_failed_write_leaves_nothing_half_written(
    given: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[[str, list[str]], str]
) -> None:
    def full_disk(self: Any, folder: Path, **options: Any) -> None:
        Path(folder).mkdir()
        (Path(folder) / "half").write_text("")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full_disk)
    assert "No space left on device" in refused("export", given.export_to(tmp_path / "model"))
    assert sorted(os.listdir(tmp_path)) == ["backbone", "mask.safetensors"]


def test_a_backbone_in_the_home_folder(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(given.backbone.parent))
    assert fingerprint(load_model("~/backbone")) == load_mask(given.mask).backbone
    assert load_tokenizer("~/backbone").eos_token_id is not None


@pytest.mark.parametrize(
    ("ending", "code", "text"),
    [
        (None, 0, ""),
        (UserError("Give more."), 2, "error: Give more.\n"),
        (RunFailed("worker 3 died"), 1, "failed: worker 3 died\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/runs/a"),
            1,
            "failed: [Errno 28] No space left on device: '/runs/a'. Free space there; a search then goes on with "
            "--resume RUN\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_how_a_program_ends(
    ending: BaseException | None, code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        if ending:
            raise ending

    assert ended(work) == code
    assert capsys.readouterr().err == text


def test_a_bug_of_ours_shows_its_traceback() -> None:
    def work() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ended(work)


def test_relative_paths_mean_what_they_meant_where_the_job_was_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = Path.cwd()
    monkeypatch.chdir(here)  # restores it afterwards
    monkeypatch.setenv("MFT_RAY_LAUNCH_DIR", str(tmp_path))
    (tmp_path / "broken.yaml").write_text("search: [")
    assert main(["tune", "--config", "broken.yaml"]) == 2
    assert "broken.yaml is not valid YAML" in capsys.readouterr().err


def test_overrides_may_be_repeated(config: Path) -> None:
    arguments = argparse.ArgumentParser()
    add_config(arguments)
    options = arguments.parse_args(["--config", str(config), "--set", "train.steps=3", "--set", "search.trials=2"])
    read = read_config(options)
    assert (read.train.steps, read.search.trials) == (3, 2)


@pytest.mark.parametrize(
    ("entry", "arguments", "option"),
    [
        ("tune", ["--config", ""], "--config"),
        ("tune", ["--resume", ""], "--resume"),
        ("tune", ["--resume="], "--resume"),
        ("train", ["--method", "fft", "--config", "c.yaml", "--out", ""], "--out"),
        ("score", ["--config", "c.yaml", "--model", " "], "--model"),
        ("evaluate", ["", "--tasks", "gsm8k", "--out", "o"], "An argument"),
        ("evaluate", ["m", "--tasks", "gsm8k", "--out", ""], "--out"),
        ("export", ["--backbone", "", "--mask", "m", "--out", "o"], "--backbone"),
        ("export", ["--backbone", "b", "--mask", "", "--out", "o"], "--mask"),
        ("export", ["--backbone", "b", "--adapter", "", "--out", "o"], "--adapter"),
    ],
)
def test_empty_text_is_nothing_that_an_option_names(
    entry: str, arguments: list[str], option: str, refused: Callable[[str, list[str]], str]
) -> None:
    assert f"error: {option} is empty text" in refused(entry, arguments)


def spoil_quantized(given: Given) -> None:
    config = given.backbone / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": {"quant_method": "awq"}}))


def spoil_nan(given: Given) -> None:
    rewrite(given, lambda tensors: tensors["model.norm.weight"].fill_(float("nan")))


def spoil_a_missing_weight(given: Given) -> None:
    rewrite(given, lambda tensors: tensors.pop("model.layers.0.mlp.up_proj.weight"))


def spoil_vocabulary(given: Given) -> None:
    tokenizer = AutoTokenizer.from_pretrained(given.backbone)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(given.backbone)


def spoil_by_an_adapter(given: Given) -> None:
    (given.backbone / "adapter_config.json").write_text("{}")


def spoil_weights(given: Given) -> None:
    (given.backbone / "model.safetensors").unlink()


def spoil_code(given: Given) -> None:
    config = given.backbone / "config.json"
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    config.write_text(json.dumps({**json.loads(config.read_text()), **own}))


def rewrite(given: Given, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = given.backbone / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (spoil_quantized, "it is quantized (awq)"),
        (spoil_nan, "1 (model.norm.weight) of its tensors hold NaN"),
        (spoil_a_missing_weight, "1 (model.layers.0.mlp.up_proj.weight) are missing"),
        (spoil_by_an_adapter, "holds a model and an adapter"),
        (spoil_weights, "it has config.json but no weights"),
        (spoil_code, "such code is never run here"),
        (spoil_vocabulary, "no embedding of: 1 ([PAD])"),
    ],
)
def test_every_command_refuses_a_strangers_checkpoint_before_it_writes(
    spoil: Callable[[Given], None],
    says: str,
    given: Given,
    tmp_path: Path,
    refused: Callable[[str, list[str]], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("builtins.input", None)
    spoil(given)
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"model": {"path": str(given.backbone)}, "data": {"task": "arithmetic"}}))
    (tmp_path / "mine.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n' * 2)
    before, out = snapshot(tmp_path), str(tmp_path / "out")
    config = ["--config", str(path)]
    assert says in refused("tune", [*config, "--set", f"run.dir={out}"])
    assert says in refused("compare", [*config, "--set", f"run.dir={out}"])
    assert says in refused("experiment", ["scope", *config, "--set", f"run.dir={out}"])
    assert says in refused("train", ["--method", "fft", *config, "--out", out])
    assert says in refused("train", ["--method", "mft", *config, "--out", out])
    assert says in refused("score", config)
    assert says in refused("evaluate", [str(given.backbone), "--tasks", str(tmp_path / "mine.jsonl"), "--out", out])
    if spoil is not spoil_vocabulary:  # of which an export makes no use
        assert says in refused("export", given.export_to(tmp_path / "out"))
    assert snapshot(tmp_path) == before


def forge(given: Given, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Another mask of the same backbone, by a program that takes no care."""
    mask = load_mask(given.mask)
    masks = dict(mask.masks)
    change(masks)
    save_mask(given.mask, MaskFile(masks, mask.settings, mask.backbone))


def forge_a_shape(given: Given) -> None:
    forge(given, lambda masks: masks.update({name: mask[:1] for name, mask in list(masks.items())[:1]}))


def forge_a_name(given: Given) -> None:
    forge(given, lambda masks: masks.update({"model.layers.9.mlp.up_proj.weight": torch.ones(2, 2, dtype=torch.bool)}))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (forge_a_shape, "has the shape [1, 16] for model.layers.0"),
        (forge_a_name, "names model.layers.9.mlp.up_proj.weight, which the model has not"),
        (lambda given: given.mask.write_bytes(b""), "is truncated or damaged"),
        (lambda given: given.mask.write_text("mask"), "is truncated or damaged"),
    ],
)
def test_every_command_refuses_a_strangers_mask_by_name(
    spoil: Callable[[Given], object],
    says: str,
    given: Given,
    config: Path,
    tmp_path: Path,
    refused: Callable[[str, list[str]], str],
) -> None:
    spoil(given)
    (tmp_path / "mine.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n' * 2)
    before = snapshot(tmp_path)
    model, mask, out = str(given.backbone), str(given.mask), str(tmp_path / "out")
    for entry, arguments in (
        ("export", given.export_to(tmp_path / "out")),
        ("score", ["--config", str(config), "--model", model, "--mask", mask]),
        ("evaluate", [model, mask, "--tasks", str(tmp_path / "mine.jsonl"), "--out", out]),
    ):
        text = refused(entry, arguments)
        assert says in text
        assert mask in text
    assert snapshot(tmp_path) == before


def test_paths_that_cannot_be_used(given: Given, tmp_path: Path, refused: Callable[[str, list[str]], str]) -> None:
    for out in (str(given.mask / "x" / "y"), "x" * 300):
        assert (
            "Cannot write the model to"
            in (text := refused("export", ["--backbone", str(given.backbone), "--mask", str(given.mask), "--out", out]))
            or "cannot be used" in text
        )
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"model": {"path": str(given.backbone)}, "data": {"task": "arithmetic"}}))
    for out in (str(given.mask / "x"), str(tmp_path / ("x" * 300))):
        text = refused("tune", ["--config", str(path), "--set", f"run.dir={out}"])
        assert "run.dir is" in text
