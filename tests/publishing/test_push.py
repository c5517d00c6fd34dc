"""What is published of a run, as --dry-run writes it: no network is asked, and nothing of this machine is in it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from finished_run import JUDGED, OTHER, SENTENCE, finished_run
from huggingface_hub import EvalResult, ModelCard, ModelCardData, constants
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from small_models import save_tiny
from transformers import AutoModelForCausalLM

from mft_ray.cli.main import main
from mft_ray.masking import apply_masks, load_mask
from mft_ray.models.adapter import save_adapter
from mft_ray.models.export import load_masked
from mft_ray.models.loading import load_model
from mft_ray.runs.fft_model import FftModel
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.records import SeedSpread, Spread, TestLook, Verdict


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Have the client refuse whatever would ask a network, and find no token."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return finished_run(tmp_path / "run")


def pushed(run: RunFolder, out: Path, *more: str, repo: str = "me/my-mask") -> ModelCard:
    assert main(["push", str(run.root), repo, *more, "--dry-run", str(out)]) == 0
    return ModelCard.load(out / "README.md")


def data(card: ModelCard) -> ModelCardData:
    assert isinstance(card.data, ModelCardData)
    return card.data


def test_a_mask_goes_with_its_card_and_nothing_else(run: RunFolder, tmp_path: Path) -> None:
    card = pushed(run, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "mask.safetensors"]
    found, wanted = load_mask(tmp_path / "out" / "mask.safetensors"), load_mask(run.trial(JUDGED) / "mask.safetensors")
    assert found.masks.keys() == wanted.masks.keys()
    assert all(torch.equal(found.masks[name], wanted.masks[name]) for name in wanted.masks)
    assert load_masked(run.fft / "best", found) is not None
    for said in (
        SENTENCE,
        "| FFT | 50.00 | +11.00 | +2.00 to +20.00 | 0.012 |",
        "| Continued FFT | 55.00 | +6.00 | −1.00 to +13.00 | 0.21 |",
        "an exact McNemar test",
        "40 steps, 1,600 tokens, 12 s",
        "120 steps, 4,800 tokens, 1 min 03 s",
        "were looked at once",
        "chosen of 3 trials",
        "weights removed, a ratio of",
        "ratio 0.3, layers all, lr 3.0e-03",
        found.backbone,
        'mft_ray.load_masked("BACKBONE", "me/my-mask")',
    ):
        assert said in card.text, said


def test_its_metadata_is_what_the_hub_reads(run: RunFolder, tmp_path: Path) -> None:
    found = data(pushed(run, tmp_path / "out"))
    assert (found.library_name, found.pipeline_tag, found.datasets) == (
        "mft_ray",
        "text-generation",
        ["HuggingFaceTB/smoltalk"],
    )
    assert {"mft_ray", "mask-fine-tuning", "mask", "arxiv:2503.22764"} == set(found.tags)
    [result] = found.eval_results
    assert isinstance(result, EvalResult)
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("exact_match", 0.61, "test")
    again = ModelCard(str(ModelCard.load(tmp_path / "out" / "README.md")))
    assert again.data.to_dict() == found.to_dict()


def test_nothing_of_this_machine_is_published(run: RunFolder, tmp_path: Path) -> None:
    run.config.write_text(run.config.read_text().replace("HuggingFaceTB/smoltalk:all", str(tmp_path / "secret.jsonl")))
    verdict = Verdict.load(run.verdict)
    verdict.model_copy(update={"not_run": {"rivals": f"traceback: {tmp_path}"}}).save(run.verdict)
    for number, more in enumerate(([], ["--model"], ["--backbone", "me/fft"])):
        assert main(["push", str(run.root), "me/x", *more, "--dry-run", str(tmp_path / f"out{number}")]) == 0
    files = [path for number in range(3) for path in (tmp_path / f"out{number}").rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if str(tmp_path).encode() in path.read_bytes()] == []


def test_a_trial_that_was_not_judged_says_so(run: RunFolder, tmp_path: Path) -> None:
    card = pushed(run, tmp_path / "out", "--trial", OTHER[:2])
    assert "**It has not been judged on test examples.**" in card.text
    assert "it scores 60.00 %" in card.text
    assert SENTENCE not in card.text
    assert data(card).eval_results is None


def test_a_run_without_a_verdict_needs_a_trial(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run.verdict.unlink()
    assert main(["push", str(run.root), "me/x", "--dry-run", str(tmp_path / "out")]) == 2
    assert "has no verdict yet" in capsys.readouterr().err
    assert "not been judged" in pushed(run, tmp_path / "out", "--trial", JUDGED).text


def test_a_whole_model_loads_as_any_other(run: RunFolder, tmp_path: Path) -> None:
    card = pushed(run, tmp_path / "out", "--model", repo="me/my-model")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    mask = load_mask(run.trial(JUDGED) / "mask.safetensors")
    wanted = apply_masks(load_model(run.fft / "best"), mask.masks).state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert data(card).library_name == "transformers"
    assert 'AutoModelForCausalLM.from_pretrained("me/my-model"' in card.text


def test_the_model_of_ones_own_goes_with_it(run: RunFolder, tmp_path: Path) -> None:
    for junk in ("optimizer.pt", "notes.txt", ".env"):
        (run.fft / "best" / junk).write_text("mine")
    out = tmp_path / "out"
    assert main(["push", str(run.root), "me/my-mask", "--backbone", "me/my-fft", "--dry-run", str(out)]) == 0
    names = {path.name for path in (out / "me" / "my-fft").iterdir()}
    assert {"config.json", "model.safetensors", "README.md"} <= names
    assert not names & {"optimizer.pt", "notes.txt", ".env"}
    card, its = (ModelCard.load(out / "me" / name / "README.md") for name in ("my-mask", "my-fft"))
    assert (data(card).base_model, data(card).get("base_model_relation")) == ("me/my-fft", "adapter")
    assert 'load_masked("me/my-fft", "me/my-mask")' in card.text
    assert data(its).eval_results[0].metric_value == 0.5
    assert load_mask(out / "me" / "my-mask" / "mask.safetensors").origin == "me/my-fft"


def test_a_changed_backbone_is_not_published(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_model(run.fft / "best")
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    model.save_pretrained(run.fft / "best")
    out = tmp_path / "out"
    assert main(["push", str(run.root), "me/m", "--backbone", "me/b", "--dry-run", str(out)]) == 2
    assert "was learned on another backbone" in capsys.readouterr().err
    assert not out.exists()


def test_licence_and_origin_of_the_start_model(tmp_path: Path) -> None:
    start = save_tiny(tmp_path / "start", layers=2)
    (start / "README.md").write_text("---\nlicense: other\nlicense_name: odd\nlicense_link: LICENSE\n---\n# Start\n")
    run = finished_run(tmp_path / "run")
    tree = yaml.safe_load(run.config.read_text())
    run.config.write_text(yaml.safe_dump({**tree, "model": {"path": str(start)}}))
    found = data(pushed(run, tmp_path / "out"))
    assert (found.license, found.license_name, found.license_link) == ("other", "odd", "LICENSE")
    assert found.base_model is None
    run.config.write_text(yaml.safe_dump({**tree, "model": {"path": "owner/start"}}))
    card = pushed(run, tmp_path / "other")
    assert (data(card).base_model, data(card).get("base_model_relation"), data(card).license) == (
        "owner/start",
        "adapter",
        None,
    )
    assert "fine-tuned from `owner/start`" in card.text


def test_seeds_and_looks_are_told(run: RunFolder, tmp_path: Path) -> None:
    spread = Spread(mean=0.1, sd=0.02, ci95=(0.05, 0.15))
    seeds = SeedSpread(n=3, runs=[{"fft": 0.5, "mft": 0.6}] * 3, delta=spread, within_noise=False)
    looks = [TestLook(trial_id=name, time="2026-01-31T12:00:00") for name in (OTHER, JUDGED)]
    Verdict.load(run.verdict).model_copy(update={"seeds": seeds, "looks": looks}).save(run.verdict)
    text = pushed(run, tmp_path / "out").text
    assert "looked at 2 times, for other trials too" in text
    assert "Over 3 seeds the difference to FFT is +10.00 points (+5.00 to +15.00)" in text


def test_an_adapter_goes_as_peft_has_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished_run(tmp_path / "run", method="lora")
    model = load_model(run.fft / "best")
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    mark = FftModel.load(run.fft_model).fingerprint
    save_adapter(wrapped, get_peft_model_state_dict(wrapped), mark, run.trial(JUDGED) / "adapter")
    card = pushed(run, tmp_path / "out", repo="me/my-lora")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["README.md", "adapter_config.json", "adapter_model.safetensors", "backbone.json"]
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] is None
    assert (data(card).library_name, "lora" in data(card).tags) == ("peft", True)
    assert main(["push", str(run.root), "me/my-lora", "--mask", "--dry-run", str(tmp_path / "no")]) == 2
    assert "make no mask but an adapter" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--model"]])
def test_a_method_that_trains_models_publishes_the_model(tmp_path: Path, more: list[str]) -> None:
    run = finished_run(tmp_path / "run", method="fft")
    save_tiny(run.trial(JUDGED) / "best", layers=2)
    card = pushed(run, tmp_path / "out", *more, repo="me/my-model")
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert data(card).library_name == "transformers"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["me/x/y"], "'me/x/y' is no name of a repository"),
        (["mask"], "it has no owner. Give owner/name"),
        (["me/--x"], "is no name of a repository"),
        (["me/x", "--backbone", "x y"], "--backbone 'x y' is no name"),
        (["me/x", "--backbone", "me/x"], "Give each a repository of its own"),
        (["me/x", "--backbone", "me/y", "--model"], "Leave out --backbone"),
        (["me/x", "--trial", "zz"], "No trial of"),
        (["me/x", "--trial", "cc"], "has left nothing"),
    ],
)
def test_what_cannot_be_is_refused(
    run: RunFolder, tmp_path: Path, given: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["push", str(run.root), *given, "--dry-run", str(out)]) == 2
    assert re.search(says, capsys.readouterr().err)
    assert not out.exists()


def test_a_full_folder_and_other_models_masks_are_refused(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    assert main(["push", str(run.root), "me/x", "--dry-run", str(tmp_path / "full")]) == 2
    assert "is not empty" in capsys.readouterr().err
    FftModel.load(run.fft_model).model_copy(update={"fingerprint": "0" * 64}).save(run.fft_model)
    assert main(["push", str(run.root), "me/x", "--dry-run", str(tmp_path / "out")]) == 2
    assert "one of them is not this run's" in capsys.readouterr().err


def test_a_program_can_read_where_it_is(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["push", str(run.root), "me/x", "--dry-run", str(out), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {"schema": 1, "published": str(out), "dry_run": True}
    assert "--backbone OWNER/NAME publishes that too" in said.err


def test_without_a_token_nothing_is_tried(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(run.root), "me/x"]) == 2
    assert "There is no token" in capsys.readouterr().err
