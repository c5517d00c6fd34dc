"""One training run or one evaluation, by the same parts as a search."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from mft_ray.config import Config
from mft_ray.data.prepare import prepare
from mft_ray.errors import UserError
from mft_ray.evaluation.statistics import standard_error
from mft_ray.masking import fingerprint
from mft_ray.report.units import unit
from mft_ray.search.capacity import concurrent_trials
from mft_ray.search.cluster import connected
from mft_ray.search.folder import RunFolder, lock, runs_home
from mft_ray.search.preparation import (
    check,
    in_steps,
    make_ready,
    tokenizer_of,
    with_absolute_paths,
    with_fixed_date,
)
from mft_ray.search.progress import Lines, say
from mft_ray.search.scoring import Subject, score
from mft_ray.search.stopping import Patience
from mft_ray.training.artifacts import find, load_with
from mft_ray.training.backbone import load_model
from mft_ray.training.group import workers
from mft_ray.training.job import write_json
from mft_ray.training.launch import launch
from mft_ray.training.recipes import train_job


def train_once(method: str, config: Config, out: str) -> None:
    """Run the training loop once and say where the result lies.

    Args:
        method: one of `mft_ray.config.METHODS`.
        config: see `mft_ray.training.recipes.recipe`.
        out: folder for the result.

    Raises:
        UserError: something given cannot work.
    """
    fft = method == "fft"
    config = with_fixed_date(with_absolute_paths(config.seeded()))
    if not fft:  # all others start from what is fine-tuned already
        config = config.model_copy(update={"fft": config.fft.model_copy(update={"given": True})})
    check(config)
    scaling = (config.fft.scaling or config.scaling) if fft else config.scaling
    root = Path(out).expanduser().resolve()
    with connected():
        concurrent_trials(scaling)
        folder = RunFolder(root)
        with lock(folder):
            start = make_ready(config, folder)
            config = in_steps(config, folder)
            job = train_job(
                method,
                config,
                model=start,
                data=str(folder.data),
                out=str(root),
                scaling=scaling,
                backbone="" if fft else fingerprint(load_model(start)),
                before=config.model.before,
            )
            config.save(folder.config)
            lines = Lines(method, config.evaluation.watched, job.train.steps)
            outcome = launch(job, Patience(job.train.patience), lines)
    best = outcome.best_evaluation
    if best is None:
        raise UserError("The run ended before the mask reached its ratio; raise train.steps.")
    print(f"best at step {best.step}: {unit(config.evaluation.watched).score(best.score)} on validation\n{find(root)}")


def evaluate_once(config: Config, model: str | None, mask: str | None, split: str, out: str | None) -> None:
    """Score one model and print what came out.

    Args:
        config: data, metric and what a worker holds.
        model: folder or hub id; None takes ``model.path``.
        mask: mask file or adapter folder to put on it.
        split: ``validation`` or ``test``.
        out: where to write per-example scores, if anywhere.

    Raises:
        UserError: something given cannot work.
    """
    config = with_absolute_paths(config.seeded())
    path = model or config.model.path
    if path is None:
        raise UserError("Give --model: the config names no model.path to score.")
    # Everything that can be wrong is found before a Ray starts.
    if mask:
        load_with(path, mask, before=config.model.before)
    local = Path(path).expanduser()
    subject = Subject(
        "model",
        str(local.resolve()) if local.is_dir() else path,
        mask and str(Path(mask).resolve()),
        config.model.before,
    )
    # On a cluster every node must see it, as it does run folders.
    shared = runs_home() if os.environ.get("RAY_ADDRESS") else None
    if shared:
        shared.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=shared, prefix="evaluate-") as scratch:
        folder = RunFolder(Path(scratch))
        folder.work.mkdir()
        prepare(config.data, tokenizer_of(config, path), folder.data, say)
        with connected():
            concurrent_trials(config.scaling)
            with workers(config.scaling, folder.work / "group") as group:
                values = score(group, subject, split, config, folder)
    shown = unit(config.evaluation.metric)
    mean, error = sum(values) / len(values), standard_error(values)
    if out:
        content = {"metric": config.evaluation.metric, "split": split, "n": len(values), "score": mean}
        write_json(Path(out), {**content, "standard_error": error, "values": values})
    print(f"{shown.label} on {split}: {shown.score(mean)} ± {shown.score(error)} (n = {len(values):,})")
