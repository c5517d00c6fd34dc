"""A run remembers each look at its test examples: whoever looks twice chooses by them."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from mft_ray.errors import UserError
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.records import TestLook, Verdict
from mft_ray.utils.console import log_warning
from mft_ray.utils.files import read_json, write_json

# Of a look, beside the verdict: what depends on which trial was judged.
_JUDGED = ("mft", "continued")
_TIME = "%Y-%m-%d %H:%M:%S"


def kept_verdict(folder: RunFolder, trial_id: str, again: bool) -> Verdict | None:
    """Return the verdict if there is one that stays; None if the test examples may be looked at for a trial.

    Args:
        folder: folder of the run.
        trial_id: identifier of the trial that is best on validation now.
        again: another trial may be judged although the test examples were looked at before.

    Raises:
        UserError: they were looked at for another trial, and that verdict is gone.
    """
    verdict = Verdict.load(folder.verdict) if folder.verdict.exists() else None
    if verdict is not None and verdict.trial_id == trial_id:
        return verdict
    others = [look for look in looks(folder) if look.trial_id != trial_id]
    if not others or again:
        return None
    when = f"looked at for trial {others[-1].trial_id} at {others[-1].time}"
    how = f"--resume {folder.named} --look-again judges it, and the verdict will say that it was not the first look"
    if verdict is None:
        raise UserError(
            f"The test examples were {when}, and trial {trial_id} is now best on validation. With every look there is "
            f"less of a test in them: {how}."
        )
    log_warning(
        f"trial {trial_id} is now best on validation, but the test examples were {when}. That verdict stays; {how}."
    )
    return verdict


def chosen_by_person(folder: RunFolder) -> str | None:
    """Return the trial that a person had judged in the place of the best on validation; None if none was."""
    verdict = Verdict.load(folder.verdict) if folder.verdict.exists() else None
    by_person = verdict is not None and verdict.selection is not None and verdict.selection.by_person
    return verdict.trial_id if verdict is not None and by_person else None


def look(folder: RunFolder, trial_id: str) -> list[TestLook]:
    """Remember that a trial is judged now, and put away what an earlier look at another one has left.

    Returns:
        The looks at earlier trials, oldest first.
    """
    before = looks(folder)
    if not before or before[-1].trial_id != trial_id:
        if before:
            _put_away(folder, folder.work / "looks" / str(len(before)))
        before.append(TestLook(trial_id=trial_id, time=time.strftime(_TIME)))
        write_json(folder.looks, [each.content() for each in before])
    return before[:-1]


def looks(folder: RunFolder) -> list[TestLook]:
    """Return for which trials a run looked at its test examples, and when; oldest first."""
    if folder.looks.exists():
        return read_json(folder.looks, lambda content: [TestLook.model_validate(each) for each in content])
    if not folder.verdict.exists():
        return []
    # Of a run from before looks were remembered.
    when = time.localtime(folder.verdict.stat().st_mtime)
    return [TestLook(trial_id=Verdict.load(folder.verdict).trial_id, time=time.strftime(_TIME, when))]


def _put_away(folder: RunFolder, to: Path) -> None:
    to.mkdir(parents=True, exist_ok=True)
    scores = [path for name in _JUDGED for path in folder.scores.glob(f"{name}-*.json")]
    tasks = [folder.tasks / name for name in _JUDGED]
    # The verdict last: until then this can be done again.
    for path in (*scores, *tasks, folder.continued, folder.seeds, folder.discordant, folder.best, folder.verdict):
        if path.exists():
            shutil.move(path, to / path.name)
