"""A trial of a run as a model, by its id."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

from mft_ray.cli.main import main
from mft_ray.data import arithmetic
from mft_ray.masking import MaskFile, Masks, MaskSettings, apply_masks, fingerprint, load_mask, save_mask
from mft_ray.models.export import save_model
from mft_ray.models.loading import load_model, new_model
from mft_ray.runs.fft_model import FftModel
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.records import Baseline, Leaderboard, SplitScore, Trial, Verdict

LLAMA = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
TRIALS = {"aa11": 0.9, "ab22": 0.8, "cc33": 0.7, "dd44": None}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A search of four trials, of which two have kept their mask."""
    folder = RunFolder(tmp_path / "run")
    backbone = folder.fft / "best"
    backbone.parent.mkdir(parents=True)
    tokenizer = arithmetic.tokenizer()
    made = new_model({**LLAMA, "num_hidden_layers": 2, "max_position_embeddings": 32}, len(tokenizer), 0)
    save_model(made, {name: each.detach() for name, each in made.named_parameters()}, tokenizer, backbone)
    model = load_model(backbone)
    baseline = Baseline(metric="exact_match", model=str(backbone), validation=SplitScore(score=0.5, n=100))
    baseline.save(folder.baseline)
    print_of, scores = fingerprint(model), {"score": 0.5, "standard_error": 0.1, "watched": 0.5, "scores": ""}
    FftModel(model=str(backbone), fingerprint=print_of, depth=2, **scores).save(folder.fft_model)
    for seed, (name, score) in enumerate(TRIALS.items()):
        folder.trial(name).mkdir(parents=True)
        if score is not None and name != "cc33":
            settings = MaskSettings(ratio=0.3)
            masks = Masks(load_model(backbone), settings, seed=seed).masks()
            save_mask(folder.trial(name) / "mask.safetensors", MaskFile(masks, settings, print_of))
    trials = [
        Trial(
            trial_id=name, config={"ratio": 0.3}, score=score, delta_fft=score and score - 0.5, stopped_reason="failed"
        )
        for name, score in TRIALS.items()
    ]
    Leaderboard(baseline=baseline, trials=trials).save(folder.leaderboard)
    return folder


def exported(run: RunFolder, out: Path, *more: str) -> dict[str, torch.Tensor]:
    assert main(["export", str(run.root), *more, "--out", str(out)]) == 0
    return dict(load_model(out).state_dict())


def of_trial(run: RunFolder, name: str) -> dict[str, torch.Tensor]:
    model = load_model(run.fft / "best")
    return dict(apply_masks(model, load_mask(run.trial(name) / "mask.safetensors").masks).state_dict())


@pytest.mark.parametrize(("more", "trial"), [([], "aa11"), (["--trial", "ab"], "ab22")])
def test_a_trial_becomes_a_model(
    run: RunFolder, tmp_path: Path, more: list[str], trial: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, wanted = exported(run, tmp_path / "out", *more), of_trial(run, trial)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    said = capsys.readouterr().out
    assert f"trial {trial}: {100 * TRIALS[trial]:.2f} % on validation" in said  # type: ignore[operator]
    assert "has not been judged" in said


def test_what_was_judged_is_taken_and_not_warned_of(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = {"n": 100, "fft": 0.5, "mft": 0.6, "delta": 0.1, "ci95": (0.0, 0.2), "p_value": 0.04, "beats_fft": True}
    Verdict(trial_id="ab22", metric="exact_match", **scores).save(run.verdict)
    found, wanted = exported(run, tmp_path / "out"), of_trial(run, "ab22")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert "has not been judged" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--trial", "zz"], "No trial of .* is called 'zz'. They are, best first: aa11, ab22, cc33, dd44"),
        (["--trial", "a"], "More than one trial of .* is called 'a'"),
        (["--trial", ""], "--trial"),
        (["--trial", "cc33"], r"has left nothing to export: only the best .* \(search.keep\).* that have: aa11, ab22"),
        (["--trial", "dd44"], r"it ended without a score \(failed\)"),
        (["--mask", "m"], "leave out --mask"),
        (["--backbone", "b", "--adapter", "a"], "leave out --backbone, --adapter"),
    ],
)
def test_what_cannot_be_is_refused(
    run: RunFolder, tmp_path: Path, given: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["export", str(run.root), *given, "--out", str(out)]) == 2
    assert re.search(says, capsys.readouterr().err)
    assert not out.exists()


def test_a_trial_needs_its_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--trial", "a", "--out", "out"]) == 2
    assert "give the run folder too" in capsys.readouterr().err
    assert main(["export", "--out", "out"]) == 2
    assert "Give a run folder, or --backbone MODEL" in capsys.readouterr().err


def test_without_a_score_there_is_nothing_yet(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    Leaderboard(trials=[]).save(run.leaderboard)
    shutil.rmtree(run.trials)
    assert main(["export", str(run.root), "--out", "out"]) == 2
    assert "has a score yet" in capsys.readouterr().err
