"""One trial of a search, as a person names it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mft_ray.errors import UserError
from mft_ray.models.names import MODEL, find
from mft_ray.runs.fft_model import FftModel
from mft_ray.runs.folder import RunFolder, named_trial
from mft_ray.runs.reading import read
from mft_ray.runs.records import Trial


@dataclass(frozen=True)
class Picked:
    """A trial, and what is needed to make a model of it.

    Attributes:
        trial: row of the leaderboard.
        artifact: its mask file, adapter folder or folder of a model.
        backbone: folder or hub id of the model that it was learned on.
        pretrained: folder or hub id of the model before fine-tuning, where that is known.
        judged: whether the verdict is on this trial.
        metric: what its score is in.
    """

    trial: Trial
    artifact: Path
    backbone: str
    pretrained: str | None
    judged: bool
    metric: str


def picked(root: Path, trial_id: str | None = None, whole: bool = False) -> Picked:
    """Find a trial of a search, finished or not.

    Args:
        root: run folder.
        trial_id: its id on the leaderboard, or the first letters of it; None takes the one that was judged, and
            without a verdict the best on validation so far.
        whole: whether a trial may have left a whole model.

    Raises:
        UserError: it is no folder of a search, no trial is called so, or the trial's mask is not kept.
    """
    run, folder = read(root), RunFolder(root)
    trial = run.winner if trial_id is None else _named(run.trials, trial_id, root)
    if trial is None:
        raise UserError(f"No trial of {root} has a score yet. Wait for the first one.")
    kept = [each.trial_id for each in run.trials if find(folder.trial(each.trial_id))]
    artifact = find(folder.trial(trial.trial_id))
    if artifact is None:
        raise UserError(
            f"Trial {trial.trial_id} has left nothing to export: {_why(trial)}. Trials of {root} that have: "
            f"{', '.join(kept) or 'none'}."
        )
    if artifact.name == MODEL and not whole:
        raise UserError(f"Trial {trial.trial_id} trains a whole model, which is ready to be loaded: {artifact}.")
    fft = FftModel.load(folder.fft_model)
    judged = run.verdict is not None and run.verdict.trial_id == trial.trial_id
    return Picked(trial, artifact, fft.model, fft.pretrained, judged, run.baseline.metric)


def _named(trials: Sequence[Trial], trial_id: str, root: Path) -> Trial:
    by_name = {trial.trial_id: trial for trial in trials}
    return by_name[named_trial(list(by_name), trial_id, root, ", best first")]


def _why(trial: Trial) -> str:
    if trial.score is None:
        return f"it ended without a score ({trial.stopped_reason})"
    return "only the best trials keep their mask (search.keep)"
