"""What a person takes away: the best mask, how to use it, and the model with it applied."""

from __future__ import annotations

import os
import shutil
from typing import Any

import yaml

from mft_ray.config import Config
from mft_ray.masking import load_mask
from mft_ray.search.baseline import Baseline
from mft_ray.search.folder import RunFolder
from mft_ray.training.export import export


def keep_winner(folder: RunFolder, config: Config, baseline: Baseline, row: dict[str, Any], sentence: str) -> None:
    """Leave mask, its configuration, a model card and (if wanted) the masked model in ``best/``.

    Args:
        folder: of the run.
        config: the resolved configuration.
        baseline: the backbone.
        row: the winner's leaderboard row.
        sentence: the verdict.
    """
    if folder.best.exists():
        return
    partial = folder.root / "best.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    mask = folder.trial(row["trial_id"]) / "mask.safetensors"
    shutil.copy2(mask, partial / "mask.safetensors")
    tree = {"trial_id": row["trial_id"], "mask": row["config"], "train": config.train.model_dump(mode="json")}
    (partial / "config.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    content = load_mask(mask)
    (partial / "README.md").write_text(_card(folder, baseline, row, sentence, content.settings.removes == "delta"))
    if config.run.export_model:
        export(baseline.model, content, partial / "model", baseline.before)
    os.replace(partial, folder.best)


def _card(folder: RunFolder, baseline: Baseline, row: dict[str, Any], sentence: str, delta: bool) -> str:
    point = ", ".join(f"{knob} {value}" for knob, value in row["config"].items())
    model, mask = baseline.model, folder.best / "mask.safetensors"
    before = f" --before {baseline.before}" if delta else ""
    return f"""# A mask learned by mft_ray

{sentence}

- Trial: {row["trial_id"]}, best at step {row["step"]} by the validation split alone
- Mask: {point}
- Backbone (the FFT model): `{model}`, fingerprint `{baseline.fingerprint}`

Make an ordinary Hugging Face model of it:

    python -m mft_ray.export --backbone {model} --mask {mask}{before} --out MODEL_FOLDER
"""
