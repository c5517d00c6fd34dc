"""What a person asks a search to try: checked against its space, then put in its queue."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mft_ray.config import load_config
from mft_ray.config.params import Params, describe
from mft_ray.errors import UserError
from mft_ray.runs.fft_model import FftModel
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.live.steering import Queued, ask_to_try, at_work, queue, trial_folder
from mft_ray.runs.settled import begun_trials
from mft_ray.searches.space import whole_point
from mft_ray.utils.files import read_json


@dataclass(frozen=True)
class Asked:
    """A configuration that has been put in the queue.

    Attributes:
        queued: the configuration, whole.
        when: when it will be tried, in words.
    """

    queued: Queued
    when: str

    @property
    def described(self) -> str:
        """The configuration in one line."""
        return describe(self.queued.point)


def try_next(root: Path, point: Params, like: str | None = None) -> Asked:
    """Have a configuration tried next.

    Args:
        root: run folder of the search.
        point: value by short name or path.
        like: trial, by the first letters of its id, whose settings are taken where ``point`` has none.

    Raises:
        UserError: it is no folder of a search that has its FFT model, no such trial, or nothing the space holds.
    """
    folder = RunFolder(root)
    if not folder.fft_model.exists():
        raise UserError(
            f"{root} has no FFT model yet, and what can be tried depends on it. Give the run folder of a search that "
            "has begun its trials, or wait until it does."
        )
    config = load_config(folder.config)
    settings = read_json(trial_folder(folder, like) / "config.json", dict) if like else {}
    whole = whole_point(config, {**settings, **point}, FftModel.load(folder.fft_model).depth)
    return Asked(ask_to_try(folder, whole), _when(folder, config.search.trials))


def _when(folder: RunFolder, trials: int) -> str:
    waiting, left = len(queue(folder)), trials - begun_trials(folder)
    if left < waiting:
        more = trials + waiting - max(left, 0)
        return (
            f"{waiting} wait to be tried, and of its {trials} trials {max(left, 0)} are left: once it has ended, "
            f"mft-ray tune --resume {folder.named} --set search.trials={more} tries what waits."
        )
    if not at_work(folder):
        return f"The search does not run now: mft-ray tune --resume {folder.named} goes on with it."
    return "It begins as soon as there is room for a trial."
