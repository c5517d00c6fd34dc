"""The run folder of a search that has ended, written without a search: what others read of it is all there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from small_models import save_tiny

from mft_ray.masking import MaskFile, Masks, MaskSettings, fingerprint, save_mask
from mft_ray.models.hub import origin_of
from mft_ray.models.loading import load_model
from mft_ray.runs.fft_model import FftModel
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.records import Baseline, Leaderboard, Selection, SplitScore, TestLook, Trial, Verdict
from mft_ray.training.job import StopReason

SENTENCE = "On 100 test examples the masked model beats FFT."
JUDGED, OTHER, GONE = "aa11", "ab22", "cc33"


def finished_run(root: Path, model: str | None = None, method: str = "mft", **settings: Any) -> RunFolder:
    """Three trials, of which two have kept their mask and the first was judged.

    Args:
        root: new run folder.
        model: hub id that was given as fine-tuned already; None is a model that was trained here.
        method: method that was searched; of another than mft the trials leave nothing.
        settings: sections of the configuration.
    """
    folder = RunFolder(root)
    backbone = save_tiny(folder.fft / "best", layers=2) if model is None else None
    name = model or str(backbone)
    loaded = load_model(name)
    mark, origin = fingerprint(loaded), origin_of(name)
    settings.setdefault("data", {"task": "chat", "train": "HuggingFaceTB/smoltalk:all"})
    config = {"run": {"name": "shared"}, "model": {"path": model}, "search": {"method": method}, **settings}
    root.mkdir(parents=True, exist_ok=True)
    folder.work.mkdir(exist_ok=True)
    folder.config.write_text(yaml.safe_dump(config))
    baseline = Baseline(
        metric="exact_match",
        model=name,
        validation=SplitScore(score=0.5, n=40),
        stopped=StopReason.GIVEN if model else StopReason.PLATEAU,
        steps=None if model else 120,
        tokens=None if model else 4_800,
        seconds=None if model else 63.0,
    )
    baseline.save(folder.baseline)
    FftModel(model=name, fingerprint=mark, depth=2, score=0.5, standard_error=0.1, watched=0.5, scores="").save(
        folder.fft_model
    )
    trials = [
        Trial(
            trial_id=trial,
            config={"ratio": 0.3, "layers": "all", "lr": 0.003},
            step=30,
            score=score,
            delta_fft=score - 0.5,
            steps=40,
            tokens=1_600,
            seconds=12.0,
            stopped_reason="completed",
        )
        for trial, score in ((JUDGED, 0.62), (OTHER, 0.6), (GONE, 0.55))
    ]
    Leaderboard(baseline=baseline, trials=trials).save(folder.leaderboard)
    for seed, trial in enumerate((JUDGED, OTHER)):
        folder.trial(trial).mkdir(parents=True)
        if method == "mft":
            masks = Masks(load_model(name), MaskSettings(ratio=0.3), seed=seed).masks()
            content = MaskFile(masks, MaskSettings(ratio=0.3), mark, origin=origin)
            save_mask(folder.trial(trial) / "mask.safetensors", content)
    Verdict(
        trial_id=JUDGED,
        metric="exact_match",
        n=100,
        fft=0.5,
        mft=0.61,
        delta=0.11,
        ci95=(0.02, 0.2),
        p_value=0.012,
        test="mcnemar",
        beats_fft=True,
        continued_fft=0.55,
        delta_continued_fft=0.06,
        ci95_continued_fft=(-0.01, 0.13),
        p_value_continued_fft=0.21,
        beats_continued_fft=False,
        sentence=SENTENCE,
        selection=Selection(split="validation", n=40, metric="exact_match", trials=3),
        looks=[TestLook(trial_id=JUDGED, time="2026-01-31T12:00:00")],
    ).save(folder.verdict)
    return folder
