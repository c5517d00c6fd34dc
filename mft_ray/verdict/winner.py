"""What a person takes away: the best mask (or what another method made), how to use it, and an ordinary model."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from mft_ray.config import METHODS, Config
from mft_ray.config.params import apply
from mft_ray.masking import load_mask
from mft_ray.models.artifacts import export
from mft_ray.models.names import BEST_MODEL, MASK, MODEL, find
from mft_ray.runs.fft_model import FftModel
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.records import Trial
from mft_ray.utils.files import replacing


def keep_winner(folder: RunFolder, config: Config, baseline: FftModel, trial: Trial, sentence: str) -> None:
    """Leave mask (or adapter), its configuration, a model card and (if wanted) the resulting model in ``best/``.

    Args:
        folder: folder of the run.
        config: the resolved configuration.
        baseline: the backbone.
        trial: the winner's leaderboard row.
        sentence: the verdict.
    """
    if folder.best.exists():
        return
    artifact = find(folder.trial(trial.trial_id))
    assert artifact is not None
    method = config.search.method
    tree = {"trial_id": trial.trial_id, "mask" if method == "mft" else method: trial.config}
    # With what the search chose of it.
    tree["train"] = METHODS[method].recipe(apply(config, trial.config)).train.model_dump(mode="json")
    with replacing(folder.best) as partial:
        partial.mkdir()
        _copy(artifact, partial / (BEST_MODEL if artifact.name == MODEL else artifact.name))
        (partial / "config.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        (partial / "README.md").write_text(_card(folder, config, baseline, trial, sentence, artifact))
        if config.run.export_model and artifact.name != MODEL:
            export(baseline.model, str(artifact), partial / BEST_MODEL, baseline.pretrained)


def _copy(source: Path, to: Path) -> None:
    shutil.copytree(source, to) if source.is_dir() else shutil.copy2(source, to)


def _card(folder: RunFolder, config: Config, baseline: FftModel, trial: Trial, sentence: str, artifact: Path) -> str:
    made = METHODS[config.search.method].makes
    point = ", ".join(f"{parameter} {value}" for parameter, value in trial.config.items())
    facts = f"""# {made.capitalize()} learned by mft_ray

{sentence}

- Trial: {trial.trial_id}, best at step {trial.step} by the validation split alone
- Method: {config.search.method}, {point}
- FFT model: `{baseline.model}`, fingerprint `{baseline.fingerprint}`
"""
    if artifact.name == MODEL:
        return facts + f"\nThe model is in `{BEST_MODEL}/`: AutoModelForCausalLM.from_pretrained loads it.\n"
    option = "--mask" if artifact.name == MASK else "--adapter"
    delta = artifact.name == MASK and load_mask(artifact).settings.removes == "delta"
    learned = f"{option} {folder.best / artifact.name}" + (f" --pretrained {baseline.pretrained}" if delta else "")
    return f"""{facts}
Make an ordinary Hugging Face model of it:

    mft-ray export --backbone {baseline.model} {learned} --out MODEL_FOLDER
"""
