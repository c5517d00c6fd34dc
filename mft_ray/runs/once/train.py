"""One training run, by the same parts as a search."""

from __future__ import annotations

from pathlib import Path

from mft_ray.config import METHODS, Config, load_config
from mft_ray.errors import UserError
from mft_ray.masking import fingerprint, load_mask
from mft_ray.models.loading import load_model
from mft_ray.models.names import ADAPTER, MASK, find
from mft_ray.runs.environment import keep_environment
from mft_ray.runs.folder import RunFolder, check_owner, lock
from mft_ray.runs.prepare import (
    check,
    in_steps,
    make_ready,
    say_untracked,
    with_absolute_paths,
    with_fixed_date,
)
from mft_ray.runs.ray_logs import kept_logs
from mft_ray.runs.repair.mend import mend_run
from mft_ray.runs.settled import Settled
from mft_ray.training.job import Outcome
from mft_ray.training.method_jobs import train_job
from mft_ray.training.step.unselected import check_method
from mft_ray.training.stopping import Patience
from mft_ray.utils.files import Damaged
from mft_ray.utils.formatting import unit
from mft_ray.utils.json_types import JsonObject
from mft_ray.workers.capacity import concurrent_trials
from mft_ray.workers.connection import connected
from mft_ray.workers.launch import launch
from mft_ray.workers.progress import JobProgress


def train_once(method: str, config: Config, out: str) -> tuple[Path, Outcome]:
    """Run the training loop once and say where the result lies; one that is there already is not made again.

    Args:
        method: one of `mft_ray.config.METHODS`.
        config: resolved configuration.
        out: folder for the result.

    Returns:
        Path of the model, mask or adapter, and what the training says of itself.

    Raises:
        UserError: something given cannot work, or the folder holds something else.
    """
    check_method(config.model.unselected_dtype, METHODS[method])
    fft = method == "fft"
    config = with_fixed_date(with_absolute_paths(config.seeded()))
    if not fft:  # all others start from what is fine-tuned already
        config = config.model_copy(update={"fft": config.fft.model_copy(update={"given": True})})
    root = Path(out).expanduser().resolve()
    folder = RunFolder(root)
    _check_settled(method, config, folder)
    if outcome := _done(root):
        print(f"{root} is done already, by {method} with these settings: nothing is trained")
        return _tell(outcome, config, root), outcome
    check_owner(root / "checkpoints")
    check(config)
    say_untracked(config, "a single training")
    scaling = (config.fft.scaling or config.scaling) if fft else config.scaling
    with connected():
        concurrent_trials(scaling)
        with lock(folder):
            settled = _check_settled(method, config, folder)  # again, now that nobody else is at it
            mend_run(folder)
            settled.begin("data")
            start = make_ready(config, folder)
            keep_environment(folder)
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
                pretrained=config.model.pretrained,
            )
            config.save(folder.config)
            lines = JobProgress(method, config.evaluation.monitor, job.train.steps)
            with kept_logs(folder):
                outcome = launch(job, Patience(job.train.patience), lines)
    return _tell(outcome, config, root), outcome


def _done(root: Path) -> Outcome | None:
    try:
        return Outcome.load(root / "outcome.json")
    except (FileNotFoundError, Damaged):  # a damaged one is told, and set aside, when the folder is held
        return None


def _tell(outcome: Outcome, config: Config, root: Path) -> Path:
    best = outcome.best_evaluation
    if best is None:
        raise UserError(
            "The run ended before the mask reached its ratio; raise train.steps and train into another folder."
        )
    artifact = find(root)
    assert artifact is not None
    shown = unit(config.evaluation.monitor)
    scored = shown.score(best.score)
    if outcome.whole is not None:
        scored = f"{shown.score(outcome.whole)} ({scored} with weights in {config.model.unselected_dtype})"
    print(f"best at step {best.step}: {scored} on validation\n{artifact}")
    return artifact


def _check_settled(method: str, config: Config, folder: RunFolder) -> Settled:
    """Return what was settled in a folder, if this training is the one that was begun there."""
    of_others = (folder.baseline, folder.leaderboard, folder.methods, folder.study, folder.root / "experiments.json")
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
    how = METHODS[method].recipe(config)
    if artifact is not None and artifact.name == MASK:
        return load_mask(artifact).settings == how.mask
    return artifact is None or (how.mask is None and (artifact.name == ADAPTER) == (how.lora is not None))


def _tree(method: str, config: Config) -> JsonObject:
    tree = config.model_dump(mode="json")
    own = (path.partition(".")[0] for path in METHODS[method].sections)
    kept = ("run", "model", "data", "evaluation", "scaling", *own)
    # How it was called, and where it goes, makes no difference.
    run = {"seed": tree["run"]["seed"]}
    return {"method": method, **{name: tree[name] for name in kept}, "run": run}
