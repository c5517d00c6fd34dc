"""Where everything of a run lies. The top level is a contract with other programs; work/ is ours."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from mft_ray.config import Config
from mft_ray.errors import UserError
from mft_ray.store.address import OPTIONS
from mft_ray.store.places import named, place_of

_TRUST = "MFT_RAY_TRUST_RUN"


class RunFolder:
    """The paths of one run.

    Args:
        root: run folder.
        data: folder of the prepared splits, where that is another run's.
    """

    def __init__(self, root: Path, data: Path | None = None) -> None:
        self.root = root
        self.config = root / "config.yaml"
        self.baseline = root / "baseline.json"
        self.fft_model = root / "work" / "fft_model.json"
        self.leaderboard = root / "leaderboard.json"
        self.curves = root / "curves.json"
        self.verdict = root / "verdict.json"
        self.study = root / "study.db"
        self.best = root / "best"
        self.data_counts = root / "data.json"
        self.environment = root / "environment.json"
        self.tensorboard = root / "tensorboard"
        self.work = root / "work"
        self.study_copy = self.work / "study.db"
        self.study_name = self.work / "study_name.json"
        self.start_model = self.work / "model"
        self.data = self.work / "data" if data is None else data
        self.fft = self.work / "fft"
        self.continued = self.work / "continued"
        self.comparison = root / "comparison.json"
        self.methods = root / "methods"
        self.trials = self.work / "trials"
        self.scores = self.work / "scores"
        self.tasks = self.work / "tasks"
        self.tune = self.work / "tune"
        self.looks = self.work / "looks.json"
        self.settled = self.work / "settled.json"
        self.queue = self.work / "queue"
        self.asked_to_end = self.work / "end"
        self.log = self.work / "log.txt"
        self.cluster = self.work / "cluster.json"
        self.library_output = self.work / "library_output.txt"
        self.tracking = self.work / "tracking"
        self.discordant = self.work / "discordant.json"
        self.rivals = self.work / "rivals"
        self.seeds = self.work / "seeds"

    @property
    def named(self) -> str:
        """What a person goes on with it by: its address where it is in an object store, else its path."""
        return named(self.root)

    def trial(self, trial_id: str) -> Path:
        """Return the folder of one trial."""
        return self.trials / trial_id

    def scores_of(self, name: str, split: str, metric: str) -> Path:
        """Return the file of a model's scores, one per example, as `mft_ray.runs.context.RunContext.score` keeps them.

        Args:
            name: name of the model among the run's scores.
            split: ``validation`` or ``test``.
            metric: name of the metric.
        """
        return self.scores / f"{name}-{split}-{metric}.json"


def has_ended(out: Path) -> bool:
    """Say whether a trial has come to its end, with an outcome or an error.

    Args:
        out: folder of the trial.
    """
    return (out / "outcome.json").exists() or (out / "error.json").exists()


def named_trial(names: Sequence[str], given: str, root: Path, order: str = "") -> str:
    """Return the trial that a person means.

    Args:
        names: identifiers of trials.
        given: one of them, or its first letters.
        root: run folder.
        order: what the order of the names is, as an error says it.

    Raises:
        UserError: no trial is called so, or more than one.
    """
    found = [name for name in names if given and name.startswith(given)]
    if len(found) == 1:
        return found[0]
    what = "No trial" if not found else "More than one trial"
    raise UserError(f"{what} of {root} is called {given!r}. They are{order}: {', '.join(names) or 'none yet'}.")


def open_folder(config: Config, resume: str | None) -> RunFolder:
    """Choose the run folder: a new one, or the one to resume.

    Args:
        config: ``run.dir`` and ``run.name`` are used.
        resume: an existing run folder to go on with, or its address.

    Raises:
        UserError: a new run would overwrite one that is there.
    """
    if resume is not None:
        root = place_of(resume).resolve()
        check_place(root, "The folder of the run")
        return RunFolder(root)
    if config.run.dir is None:
        root = runs_home() / f"{config.run.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    else:
        root = runs_home().parent / place_of(config.run.dir)
    if os.path.exists(root) and not root.is_dir():
        raise UserError(f"run.dir {root} is a file. Give a new or empty folder with --set run.dir=FOLDER.")
    check_place(root, "run.dir")
    if root.exists() and any(root.iterdir()):
        raise UserError(
            f"The run folder {root} is not empty. Continue that run with --resume {named(root)}, or give another "
            "folder with --set run.dir=FOLDER."
        )
    return RunFolder(root)


def check_place(folder: Path, setting: str) -> None:
    """Refuse a folder that cannot be made or written, before anything is.

    Args:
        folder: absolute.
        setting: that names it.

    Raises:
        UserError: naming what is in the way.
    """
    if any(f"{scheme}:" in folder.parts for scheme in OPTIONS):  # what is left of an address that was taken for a path
        raise UserError(
            f"{setting} is {folder}, and what is written there cannot go into an object store: only run.dir of "
            "mft-ray tune, compare and experiment can be an address. Give a folder."
        )
    there = folder
    while not os.path.exists(there):
        there = there.parent
    if there.is_dir() and _writable(there):
        too_long = any(len(os.fsencode(part)) > 255 for part in folder.parts)
        reason = "a name in it is too long" if too_long else None
    else:
        reason = f"{there} is a file" if there.is_file() else f"{there} cannot be written"
    if reason:
        shown = str(folder) if len(str(folder)) <= 200 else f"{str(folder)[:200]}…"
        raise UserError(f"{setting} is {shown}, and {reason}. Give a new or empty folder where one can be made.")


def _writable(folder: Path) -> bool:
    try:
        # Tried: what permissions say is not all, for root and on file systems that are full or read-only.
        with tempfile.TemporaryDirectory(prefix=".mft_ray-", dir=folder):
            return True
    except OSError:
        return False


def runs_home() -> Path:
    """Return where relative run folders go: ./runs, but not inside Ray's temporary copy of a working dir."""
    here = Path.cwd()
    # A submitted job runs in a copy of the submitter's directory, which Ray deletes later.
    return (Path.home() / "mft_ray" if "runtime_resources" in here.parts else here) / "runs"


def lock(folder: RunFolder) -> FileLock:
    """Hold a run folder for this process alone.

    Raises:
        UserError: another process works on it.
    """
    check_place(folder.root, "The folder of the run")
    folder.work.mkdir(parents=True, exist_ok=True)
    held = FileLock(os.fspath(folder.work / "lock"))
    try:
        # Whoever looks whether a run is held takes the lock for a moment.
        held.acquire(timeout=1)
    except Timeout:
        raise UserError(
            f"Another process is working on {folder.named}. Wait for it to end, or give another run.dir."
        ) from None
    return held


def check_owner(folder: Path) -> None:
    """Refuse files of somebody else: Tune's state and checkpoints are unpickled, and a pickle can do all that one may.

    Files of root are as good as one's own. ``MFT_RAY_TRUST_RUN=1`` lets any pass.

    Args:
        folder: with the files; there may be none yet.

    Raises:
        UserError: naming the first file and its owner.
    """
    if os.environ.get(_TRUST) == "1":
        return
    trusted = {os.getuid(), 0}
    for path in (folder, *folder.rglob("*")) if folder.exists() else ():
        owner = path.lstat().st_uid
        if owner not in trusted:
            raise UserError(
                f"{path} belongs to user {owner}, and you are user {os.getuid()}. To go on with a run, files of it are "
                "loaded that can run code as you. If you trust who made them, copy the run folder (cp -r, which makes "
                f"it yours) and resume the copy, or set {_TRUST}=1."
            )
