"""What a person asks of a search, as files in its folder: whoever asks writes them, the search carries them out.

They need neither a port nor a process that listens, work over storage that machines share, and whoever may write into
the run folder may ask. What the search has not carried out yet can be seen, and taken back by deleting the file.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from mft_ray.config.params import Params
from mft_ray.errors import UserError
from mft_ray.runs.folder import RunFolder, has_ended, named_trial
from mft_ray.utils.console import log_warning
from mft_ray.utils.files import Damaged, read_json, set_aside, write_json


@dataclass(frozen=True)
class Queued:
    """A configuration that a person wants to have tried.

    Attributes:
        name: what tells it from others; they are tried in the order of their names.
        point: value by short name, whole.
        asked: when, in seconds since 1970.
    """

    name: str
    point: Params
    asked: float


def ask_to_try(folder: RunFolder, point: Params) -> Queued:
    """Ask for a configuration to be tried next.

    Args:
        folder: folder of the run.
        point: as `mft_ray.searches.space.whole_point` returns it.

    Raises:
        UserError: the run is in an object store, and no search of this machine works on it.
    """
    if is_copy(folder) and not at_work(folder):
        raise UserError(
            f"{folder.root} is this machine's copy of {folder.named}, and no search works on it here: nobody would see "
            "what is asked. Ask on the machine where it works, by the same address, or go on with it here: "
            f"mft-ray tune --resume {folder.named}."
        )
    now = time.time()
    queued = Queued(f"{time.time_ns():020d}-{uuid4().hex[:6]}", point, now)
    folder.queue.mkdir(parents=True, exist_ok=True)
    write_json(folder.queue / f"{queued.name}.json", asdict(queued))
    return queued


def queue(folder: RunFolder) -> list[Queued]:
    """Return what waits to be tried, in order; what was not written by `ask_to_try` is set aside, and said."""
    found = []
    for path in sorted(folder.queue.glob("*.json")):
        try:
            found.append(read_json(path, lambda content: Queued(**content)))
        except FileNotFoundError:  # tried, or taken back, in between
            continue
        except Damaged as error:
            set_aside(path, path.with_suffix(".damaged"))
            log_warning(f"{error}; it is not tried (mft-ray enqueue writes what is)")
    return found


def take(folder: RunFolder, queued: Queued) -> None:
    """Take a configuration out of the queue: it is being tried, or nobody wants it any more."""
    (folder.queue / f"{queued.name}.json").unlink(missing_ok=True)


def take_back(folder: RunFolder, name: str) -> None:
    """Have a configuration not tried after all.

    Raises:
        UserError: it is not in the queue.
    """
    for queued in queue(folder):
        if queued.name == name:
            return take(folder, queued)
    raise UserError(f"{name!r} does not wait in {folder.root}: it was tried or taken back.")


def ask_to_end(folder: RunFolder) -> None:
    """Ask for no more trials to begin; those at work end as they would, and the verdict is on what there is."""
    folder.work.mkdir(parents=True, exist_ok=True)
    folder.asked_to_end.touch()


def asked_to_end(folder: RunFolder) -> bool:
    """Say whether the search is to begin no more trials."""
    return folder.asked_to_end.exists()


def ask_trial_to_end(folder: RunFolder, trial_id: str) -> str:
    """Ask for a trial to end with its next evaluation, and to count with what it has reached.

    Args:
        folder: folder of the run.
        trial_id: its id, or the first letters of it.

    Returns:
        Its id.

    Raises:
        UserError: there is no such trial, or it has ended.
    """
    out = trial_folder(folder, trial_id)
    trial_id = out.name
    if has_ended(out):
        raise UserError(f"Trial {trial_id} has ended already.")
    sign_of_end(out).touch()
    return trial_id


def trial_folder(folder: RunFolder, trial_id: str) -> Path:
    """Return the folder of a trial that a person names.

    Args:
        folder: folder of the run.
        trial_id: its id, or the first letters of it.

    Raises:
        UserError: no trial is called so, or more than one.
    """
    begun = sorted(path.parent.name for path in folder.trials.glob("*/config.json"))
    return folder.trial(named_trial(begun, trial_id, folder.root))


def at_work(folder: RunFolder) -> bool:
    """Say whether a process works on a run now; of one on another machine only storage that shares locks tells."""
    path = folder.work / "lock"
    if not path.exists():
        return False
    try:
        with FileLock(path).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # one that may not be written is looked at by somebody who does not work on it
        return False


def stop(root: Path, trial_id: str | None = None) -> str:
    """Ask for a search, or one of its trials, to end.

    Args:
        root: run folder of the search.
        trial_id: the trial; None is the search.

    Returns:
        What happens now, in words.

    Raises:
        UserError: no search works on it, or there is no such trial at work.
    """
    folder = RunFolder(root)
    if not at_work(folder):
        here = " on this machine; where it works, the same command ends it" if is_copy(folder) else ""
        raise UserError(f"No search works on {folder.named} now{here}, so there is nothing to end.")
    if trial_id is not None:
        return f"trial {ask_trial_to_end(folder, trial_id)} ends with its next evaluation"
    ask_to_end(folder)
    return "no more trials begin; those at work end as they would, and the verdict is on what there is"


def is_copy(folder: RunFolder) -> bool:
    """Say whether a run folder is the copy of a run in an object store."""
    return folder.named != str(folder.root)


def sign_of_end(out: Path) -> Path:
    """Return the file that says that a trial is to end.

    Args:
        out: folder of the trial.
    """
    return out / "end"
