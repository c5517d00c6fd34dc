"""One training run or one evaluation, by the same parts as a search."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from mft_ray.config import Config, load_config
from mft_ray.errors import RunFailed, UserError
from mft_ray.evaluation.statistics import standard_error
from mft_ray.masking import fingerprint, load_mask
from mft_ray.report.units import unit
from mft_ray.search.capacity import concurrent_trials
from mft_ray.search.cluster import connected
from mft_ray.search.folder import RunFolder, check_place, lock, runs_home
from mft_ray.search.mending import mend_run
from mft_ray.search.owned import check_owner
from mft_ray.search.preparation import (
    check,
    in_steps,
    make_ready,
    prepare_data,
    tokenizer_of,
    with_absolute_paths,
    with_fixed_date,
)
from mft_ray.search.progress import Lines, say
from mft_ray.search.ray_logs import kept_logs
from mft_ray.search.scoring import Subject, score
from mft_ray.search.settled import Settled
from mft_ray.search.stopping import Patience
from mft_ray.training.artifacts import ADAPTER, MASK, find, load_with
from mft_ray.training.backbone import load_model, load_skeleton
from mft_ray.training.group import TRACEBACK, keep_traceback, workers
from mft_ray.training.job import Outcome
from mft_ray.training.launch import launch
from mft_ray.training.recipes import recipe, train_job
from mft_ray.utils.files import Damaged, write_json

# What a method is made from, beside what all are.
_SECTIONS = {"fft": ("fft",), "continued_fft": ("fft", "train"), "lora": ("lora", "train")}
_MASK = ("mask", "train")


def train_once(method: str, config: Config, out: str) -> None:
    """Run the training loop once and say where the result lies; one that is there already is not made again.

    Args:
        method: one of `mft_ray.config.METHODS`.
        config: see `mft_ray.training.recipes.recipe`.
        out: folder for the result.

    Raises:
        UserError: something given cannot work, or the folder holds something else.
    """
    fft = method == "fft"
    config = with_fixed_date(with_absolute_paths(config.seeded()))
    if not fft:  # all others start from what is fine-tuned already
        config = config.model_copy(update={"fft": config.fft.model_copy(update={"given": True})})
    root = Path(out).expanduser().resolve()
    folder = RunFolder(root)
    _check_settled(method, config, folder)
    if outcome := _done(root):
        print(f"{root} is done already, by {method} with these settings: nothing is trained")
        _tell(outcome, config, root)
        return
    check_owner(root / "checkpoints")
    check(config)
    scaling = (config.fft.scaling or config.scaling) if fft else config.scaling
    with connected():
        concurrent_trials(scaling)
        with lock(folder):
            settled = _check_settled(method, config, folder)  # again, now that nobody else is at it
            mend_run(folder)
            settled.begin("data")
            start = make_ready(config, folder)
            settled.begin("training")
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
            with kept_logs(folder):
                outcome = launch(job, Patience(job.train.patience), lines)
    _tell(outcome, config, root)


def _done(root: Path) -> Outcome | None:
    try:
        return Outcome.load(root / "outcome.json")
    except (FileNotFoundError, Damaged):  # a damaged one is told, and set aside, when the folder is held
        return None


def _tell(outcome: Outcome, config: Config, root: Path) -> None:
    best = outcome.best_evaluation
    if best is None:
        raise UserError(
            "The run ended before the mask reached its ratio; raise train.steps and train into another folder."
        )
    print(f"best at step {best.step}: {unit(config.evaluation.watched).score(best.score)} on validation\n{find(root)}")


def _check_settled(method: str, config: Config, folder: RunFolder) -> Settled:
    """Return what was settled in a folder, if this training is the one that was begun there."""
    of_others = (folder.baseline, folder.leaderboard, folder.methods, folder.study, folder.root / "study.json")
    if any(path.exists() for path in of_others):
        raise UserError(f"{folder.root} is the folder of a search or a comparison. Give another --out.")
    settled = Settled(folder, _tree(method, config))
    if not folder.settled.exists() and folder.config.exists():
        settled = _of_earlier_version(method, config, folder)
    elif (begun := settled.used("method")) not in (None, method):
        # What only one of the two methods is made from says nothing.
        settled = Settled(folder, {**_tree(begun, config), "method": method})
    if found := settled.differences():
        raise UserError(
            f"{folder.root} was begun with other settings: {'; '.join(map(str, found))}. Give another --out for these, "
            "or put them back to go on there."
        )
    return settled


def _of_earlier_version(method: str, config: Config, folder: RunFolder) -> Settled:
    """Return what was settled where only the configuration was kept, with epochs as steps; the method was not."""
    if folder.data.exists():
        config = in_steps(config, folder)
    if not _could_have_made(method, config, find(folder.root)):
        raise UserError(f"{folder.root} holds what another method, or other settings, made. Give another --out.")
    return Settled(folder, _tree(method, config), _tree(method, load_config(folder.config)))


def _could_have_made(method: str, config: Config, artifact: Path | None) -> bool:
    how = recipe(method, config)
    if artifact is not None and artifact.name == MASK:
        return load_mask(artifact).settings == how.mask
    return artifact is None or (how.mask is None and (artifact.name == ADAPTER) == (how.lora is not None))


def _tree(method: str, config: Config) -> dict[str, Any]:
    tree = config.model_dump(mode="json")
    kept = ("run", "model", "data", "evaluation", "scaling", *_SECTIONS.get(method, _MASK))
    # How it was called, and where it goes, makes no difference.
    run = {"seed": tree["run"]["seed"]}
    return {"method": method, **{name: tree[name] for name in kept}, "run": run}


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
    if out:
        _check_file(Path(out).expanduser().absolute())
    if mask:
        load_with(path, mask, before=config.model.before)
        if Path(mask).is_file():
            say(f"{mask}: {load_mask(mask)}")
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
        prepare_data(config, tokenizer_of(config, path), load_skeleton(path), folder)
        with connected():
            concurrent_trials(config.scaling)
            with workers(config.scaling, folder.work / "group") as group:
                try:
                    values = score(group, subject, split, config, folder)
                except RunFailed as failure:
                    # The scores' folder, which has it too, goes away.
                    keep_traceback(failure, Path(out or "evaluate").absolute().with_suffix(f".{TRACEBACK}"))
                    raise
    shown = unit(config.evaluation.metric)
    mean, error = sum(values) / len(values), standard_error(values)
    print(f"{shown.label} on {split}: {shown.score(mean)} ± {shown.score(error)} (n = {len(values):,})", flush=True)
    if out:
        content = {"metric": config.evaluation.metric, "split": split, "n": len(values), "score": mean}
        file = Path(out).expanduser().absolute()
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {**content, "standard_error": error, "values": values})


def _check_file(path: Path) -> None:
    """Refuse a file that could not be written when all is scored."""
    if path.is_dir():
        raise UserError(f"--out is {path}, which is a folder. With --config it is a file, for one score an example.")
    check_place(path.parent, "The folder of --out")
