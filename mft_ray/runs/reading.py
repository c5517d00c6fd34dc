"""A whole run as its folder has it, for whoever shows it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import ValidationError

from mft_ray.config import METHODS, EvaluationConfig, parse_config
from mft_ray.config.parsing.yaml_text import read_yaml
from mft_ray.config.stages import as_used, defaults, differences, flatten, nested, read_settled, used_settings
from mft_ray.errors import UserError
from mft_ray.models.names import ADAPTER, BEST_MODEL, MASK
from mft_ray.runs.records import (
    Baseline,
    Curves,
    Differences,
    FftScores,
    FileRecord,
    Leaderboard,
    SplitScore,
    Trial,
    Verdict,
)
from mft_ray.utils.files import Damaged
from mft_ray.utils.json_types import JsonObject

T = TypeVar("T", bound=FileRecord)


@dataclass(frozen=True)
class Best:
    """What a search leaves of its winner.

    Attributes:
        folder: folder of the mask (or adapter), its settings, its card and, if wanted, the model.
        trial: row of the leaderboard.
    """

    folder: Path
    trial: Trial

    @property
    def mask_path(self) -> Path | None:
        """Mask file; None where another method was searched."""
        return self._there(MASK)

    @property
    def adapter_path(self) -> Path | None:
        """Folder of a LoRA adapter; None where another method was searched."""
        return self._there(ADAPTER)

    @property
    def model_path(self) -> Path | None:
        """Folder of the model with the mask in its weights; None with ``run.export_model: false``."""
        return self._there(BEST_MODEL)

    def _there(self, name: str) -> Path | None:
        path = self.folder / name
        return path if path.exists() else None


@dataclass(frozen=True)
class Run:
    """Everything that a run folder says so far; ``verdict`` is None while the search is unfinished.

    Its configuration is the one that it was made with; ``changed`` says where ``config.yaml`` has other settings now.
    """

    folder: Path
    baseline: Baseline
    trials: list[Trial]
    verdict: Verdict | None
    curves: Curves
    differences: Differences
    config: JsonObject
    config_text: str
    changed: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The run's name from its configuration, else its folder's."""
        section = self.config.get("run")
        name = section.get("name") if isinstance(section, dict) else None
        return str(name or self.folder.resolve().name)

    @property
    def leaderboard(self) -> list[Trial]:
        """All trials, best first."""
        return self.trials

    @property
    def backbone(self) -> str | None:
        """Folder or hub id of the FFT model, which masks are learned on."""
        return self.baseline.model

    @property
    def best(self) -> Best | None:
        """What is left of the trial that was judged; None before the verdict."""
        folder, winner = self.folder / "best", self.winner
        return Best(folder, winner) if folder.is_dir() and winner is not None else None

    @property
    def product(self) -> str:
        """What its trials make: masks, unless another method is searched."""
        section = self.config.get("search")
        method = section.get("method", "mft") if isinstance(section, dict) else "mft"
        return METHODS[method].makes if method in METHODS else "mask"

    @property
    def pareto_front(self) -> list[Trial]:
        """Trials that no other one beats in score without removing fewer weights, lowest masking ratio first."""
        return sorted((trial for trial in self.trials if trial.pareto), key=lambda trial: trial.config["ratio"])

    @property
    def seeks_front(self) -> bool:
        """Whether the search looked for high masking ratios too."""
        section = self.config.get("search")
        return isinstance(section, dict) and section.get("objectives") == "score_and_ratio"

    @property
    def unselected_dtype(self) -> str | None:
        """How weights were held outside the selection while masks or adapters were learned; None: as all others."""
        section = self.config.get("model")
        held = section.get("unselected_dtype") if isinstance(section, dict) else None
        return str(held) if held else None

    @property
    def scored_at_end(self) -> bool:
        """Whether trials have a score that counts at their ends only: on the way it is of another metric, or model."""
        return self.baseline.watched is not None or self.unselected_dtype is not None

    @property
    def while_training(self) -> Run:
        """The same run with the baseline by the metric that its curves are in."""
        watched = self.baseline.watched
        if watched is None:
            return self
        by_it = {name: getattr(watched, name) for name in ("metric", "validation", "standard_error")}
        return replace(self, baseline=self.baseline.model_copy(update=by_it))

    @property
    def winner(self) -> Trial | None:
        """The trial that was judged; without a verdict the best on validation so far."""
        if self.verdict is not None:
            return next((t for t in self.trials if t.trial_id == self.verdict.trial_id), None)
        return next((t for t in self.trials if t.score is not None), None)


def read(folder: Path, so_far: bool = False) -> Run:
    """Read a run folder.

    The baseline and the leaderboard must be there; the verdict, the curves and the configuration may
    be missing, as in a search that is still going.

    Args:
        folder: run folder.
        so_far: where it has no baseline yet, one without a score stands in its place, and a leaderboard has no trials.

    Raises:
        UserError: the folder or a needed file is missing, or a file is not what it should be.
    """
    if not folder.is_dir():
        raise UserError(
            f"There is no run folder {folder}. Give the folder that a search wrote, "
            "such as runs/NAME-TIME, which holds baseline.json and leaderboard.json."
        )
    config, text, changed = _as_used(*_config(folder / "config.yaml"), folder / "work" / "settled.json")
    if so_far and not (folder / "work").is_dir():
        raise UserError(f"{folder} is not the folder of a run: it has no folder work. Give one such as runs/NAME-TIME.")
    baseline = _optional(folder / "baseline.json", Baseline) if so_far else None
    board = _optional(folder / "leaderboard.json", Leaderboard) if so_far else None
    if so_far:
        baseline, board = baseline or _no_baseline(config), board or Leaderboard(trials=[])
    return Run(
        folder=folder,
        baseline=baseline or _needed(folder / "baseline.json", Baseline, "once the FFT baseline is trained"),
        trials=(board or _needed(folder / "leaderboard.json", Leaderboard, "once its trials have ended")).trials,
        verdict=_optional(folder / "verdict.json", Verdict),
        curves=_optional(folder / "curves.json", Curves) or Curves(),
        differences=_optional(folder / "work" / "discordant.json", Differences) or Differences(),
        config=config,
        config_text=text,
        changed=changed,
    )


def _no_baseline(config: JsonObject) -> Baseline:
    """Return one without a score, in the metrics that there will be one of."""
    section = config.get("evaluation")
    evaluation = EvaluationConfig.model_validate(section) if isinstance(section, dict) else EvaluationConfig()
    nothing = SplitScore(score=None, n=0)
    differs = evaluation.monitor != evaluation.metric
    watched = FftScores(metric=evaluation.monitor, validation=nothing) if differs else None
    return Baseline(metric=evaluation.metric, validation=nothing, watched=watched)


def _needed(path: Path, kind: type[T], when: str) -> T:
    record = _optional(path, kind)
    if record is None:
        raise UserError(
            f"{path.parent} has no {path.name}. A search writes it {when}: give the folder of a search "
            "that got that far, or wait for this one."
        )
    return record


def _optional(path: Path, kind: type[T]) -> T | None:
    try:
        return kind.load(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. Give a run folder that can be read.") from None
    except Damaged as error:
        if not isinstance(error.__cause__, ValidationError):
            raise UserError(
                f"{error}. It must be the JSON file that the search wrote; resume the search to have it written again, "
                "or give another run folder."
            ) from None
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'the whole'}: {item['msg']}"
            for item in error.__cause__.errors(include_url=False)[:3]
        )
        raise UserError(
            f"{path} is not what a search writes ({problems}). Resume the search to have it written "
            "again, or give another run folder."
        ) from None


def _config(path: Path) -> tuple[JsonObject, str]:
    try:
        text = path.read_text(encoding="utf-8")
        tree = read_yaml(text)
    except FileNotFoundError:
        return {}, ""
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(
            f"{path} cannot be read: {error}. It must be the YAML file that the search wrote; put it back "
            "or give another run folder."
        ) from None
    return (tree if isinstance(tree, dict) else {}), text


def _as_used(tree: JsonObject, text: str, path: Path) -> tuple[JsonObject, str, tuple[str, ...]]:
    """Return the configuration with the settings that the run's stages were made with, and what differs from them."""
    recorded = read_settled(path)
    if not recorded:
        return tree, text, ()
    try:
        tree = parse_config(tree, "config.yaml").model_dump(mode="json")
    except UserError as error:
        used = nested(used_settings(recorded))
        return used, yaml.safe_dump(used, sort_keys=False), (str(error),)
    flat = flatten(tree)
    found = differences(recorded, flat, defaults(tree))
    if not found:
        return tree, text, ()
    used = nested(as_used(flat, found))
    return used, yaml.safe_dump(used, sort_keys=False), tuple(map(str, found))
