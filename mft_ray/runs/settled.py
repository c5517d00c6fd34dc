"""What each stage of a run was made with: once a stage has begun, its settings can no longer change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mft_ray.config import Config, load_config
from mft_ray.config.stages import (
    SCHEMA,
    STAGES,
    Difference,
    Stage,
    defaults,
    differences,
    flatten,
    made_from,
    read_settled,
    used_settings,
)
from mft_ray.errors import UserError
from mft_ray.runs.folder import RunFolder
from mft_ray.utils.files import Damaged, read_json, write_json


class Settled:
    """The settings that the stages of a run were made with, kept in ``RUN/work/settled.json``.

    Args:
        folder: folder of the run.
        tree: the configuration as it is asked for now, paths absolute: what stages that begin are made from.
        before: the configuration that stages without a record were made with, for a run of an earlier version; None
            where there is none.

    Attributes:
        reopened: paths of settings, or their beginnings, that have changed because nothing was made with them.
    """

    def __init__(self, folder: RunFolder, tree: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> None:
        self.folder, self._now, self._defaults = folder, flatten(tree), defaults(tree)
        self.reopened: set[str] = set()
        recorded = read_settled(folder.settled)
        if recorded is None:
            was = flatten(tree if before is None else before)
            recorded = {stage: made_from(stage, was) for stage in STAGES if _there(stage, folder)}
        self.recorded = recorded
        # Interrupted while it was prepared: it is prepared anew, and may be from something else.
        if self.recorded.keys() == {"data"} and not _there("data", folder):
            self.recorded.clear()
        self._reopen(unmade(folder, self._now.get("search.method")))

    def _reopen(self, prefixes: Iterable[str]) -> None:
        """Take settings back that only what could not be run was to be made with; what was begun by others goes."""
        for prefix in prefixes:
            now = {path: value for path, value in self._now.items() if path.startswith(prefix)}
            for stage in self.recorded:
                used = {path: value for path, value in self.recorded[stage].items() if path.startswith(prefix)}
                if used and used != now:
                    kept = {path: value for path, value in self.recorded[stage].items() if path not in used}
                    self.recorded[stage] = {**kept, **now}
                    self.reopened.add(prefix)

    def differences(self) -> list[Difference]:
        """Return the settings that are not what a stage that has begun was made with."""
        return differences(self.recorded, self._now, self._defaults)

    def used(self, path: str) -> Any:
        """Return the value that a setting was used with; None if no stage that reads it has begun.

        Args:
            path: path of the setting.
        """
        return used_settings(self.recorded).get(path)

    def begin(self, stage: Stage) -> None:
        """Record what a stage is made with, unless it has begun already.

        Args:
            stage: that begins now.
        """
        self.recorded.setdefault(stage, made_from(stage, self._now))
        self.folder.settled.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.folder.settled, {"schema": SCHEMA, "stages": self.recorded})


def check_settled(folder: RunFolder, config: Config) -> Settled:
    """Return what was settled in a run of several stages, if the configuration keeps to it.

    Args:
        folder: folder of the run; one of an earlier version was made with the ``config.yaml`` that is in it.
        config: as it is asked for now, with absolute paths.

    Raises:
        UserError: naming each setting that differs, the value it was used with and the one it has now, and what to do.
    """
    known = folder.settled.exists() or not folder.config.exists()
    before = None if known else load_config(folder.config).model_dump(mode="json")
    settled = Settled(folder, config.model_dump(mode="json"), before)
    if found := settled.differences():
        raise UserError(
            f"{folder.root} has begun with other settings: {'; '.join(map(str, found))}. What was made with them stays "
            f"as it is: put them back in {folder.config} (or leave out --set) and --resume again, or start a new run "
            "with --config."
        )
    for path, asked, begun in (
        ("search.trials", config.search.trials, begun_trials(folder)),
        ("experiment.seeds", config.experiment.seeds, _begun_seeds(folder)),
    ):
        if asked < begun:
            raise UserError(
                f"{path} is {asked}, and {begun} have begun in {folder.root}: none is taken back. Set {path} to "
                f"{begun} or more."
            )
    return settled


# What a verdict may have had to do without, and the settings that nothing else is made from.
_OF_WHAT = {"continued_fft": ("fft.continued_lr",), "rival lora": ("lora.",)}


def unmade(folder: RunFolder, method: str | None) -> list[str]:
    """Return settings, or their beginnings, that a verdict's baselines were to be made with and were not.

    Args:
        folder: folder of the run.
        method: method of the search, whose trials were made with settings of their own.
    """
    try:
        not_run = read_json(folder.verdict, lambda content: list(content.get("not_run", ())))
    except (FileNotFoundError, Damaged):
        return []
    found = [prefix for name in not_run for prefix in _OF_WHAT.get(name, ())]
    return [prefix for prefix in found if not prefix.startswith(_OF_TRIALS.get(method or "", "nothing"))]


_OF_TRIALS = {"lora": "lora.", "continued_fft": "fft."}


def begun_trials(folder: RunFolder) -> int:
    """Return how many trials of a search have begun.

    Args:
        folder: folder of the run.
    """
    return sum(1 for _ in folder.trials.glob("*/config.json"))


def _begun_seeds(folder: RunFolder) -> int:
    """Return over how many seeds experiments have begun to run."""
    return 1 + max((int(path.name.removeprefix("seed-")) for path in folder.root.glob("runs/*/seed-*")), default=-1)


def _there(stage: Stage, folder: RunFolder) -> bool:
    """Say whether anything was made in a stage."""
    root = folder.root
    made = {
        "data": [folder.data, folder.start_model],
        "baseline": [folder.fft, folder.baseline, *folder.scores.glob("fft-*")],
        "trials": [folder.trials, *folder.tune.glob("*/experiment_state-*.json")],
        "verdict": [folder.looks, folder.verdict, folder.rivals, folder.continued],
        "methods": [folder.methods],
        "scores": [folder.comparison, *(folder.scores.glob("*-test-*") if folder.methods.exists() else ())],
        "training": [root / name for name in ("progress.json", "checkpoints", "outcome.json")],
        "experiments": [root / "runs"] if (root / "experiments.json").exists() else [],
    }
    return any(path.exists() for path in made[stage])
