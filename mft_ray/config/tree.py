"""The whole tree, and how it is read from YAML and saved."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from mft_ray.config import bundled
from mft_ray.config.comparison import CompareConfig
from mft_ray.config.data import DataConfig, EvaluationConfig
from mft_ray.config.experiment import ExperimentConfig
from mft_ray.config.parsing.explain import explain, explain_yaml
from mft_ray.config.parsing.paths import setting_type
from mft_ray.config.parsing.values import check_name, mistaken, unusable
from mft_ray.config.parsing.yaml_text import Overrides, apply_overrides, read_yaml, write_yaml
from mft_ray.config.search import SearchConfig
from mft_ray.config.section import Section
from mft_ray.config.space import SettingRange
from mft_ray.config.tracking import TrackingConfig
from mft_ray.config.training import FftConfig, LoraConfig, ModelConfig, ScalingConfig, TrainConfig
from mft_ray.config.verdict import VerdictConfig
from mft_ray.errors import UserError
from mft_ray.masking import MaskSettings
from mft_ray.store.address import Address, is_address
from mft_ray.utils.files import write_text
from mft_ray.utils.json_types import JsonObject

_SEEDS = 2**31  # what numpy and torch both take, with room for what is added to tell workers and repeats apart
_MAX_TOLD = 5  # bad values in one message


class RunConfig(Section):
    """One search from backbone to verdict."""

    name: str = Field("search", description="of the run, and first part of its folder's name where dir is null")
    dir: str | None = Field(
        None, description="run folder, seen by every node, or s3://BUCKET/FOLDER or gs://…; null: runs/NAME-TIME"
    )
    push_seconds: float = Field(15.0, gt=0, description="pause between writing a run to its object store and the next")
    push_patience_minutes: float = Field(
        30.0, ge=0, description="that an object store may be away until the search is ended, to be resumed"
    )
    export_model: bool = Field(True, description="leave the masked model in RUN/best/model, ready to load")
    seed: int = Field(0, description="added to every other seed: one number repeats the whole run")

    @field_validator("name")
    @classmethod
    def _folder(cls, given: str) -> str:
        return check_name(given, "run.name")

    @field_validator("dir")
    @classmethod
    def _address(cls, given: str | None) -> str | None:
        if is_address(given):
            try:
                Address.parse(str(given))
            except UserError as error:
                raise ValueError(str(error).rstrip(".")) from None
        return given


class Config(Section):
    """The whole tree."""

    run: RunConfig = RunConfig()
    model: ModelConfig
    data: DataConfig = DataConfig()
    fft: FftConfig = FftConfig()
    mask: MaskSettings = MaskSettings()
    train: TrainConfig = TrainConfig()
    lora: LoraConfig = LoraConfig()
    search: SearchConfig = SearchConfig()
    verdict: VerdictConfig = VerdictConfig()
    compare: CompareConfig = Field(default_factory=CompareConfig)
    experiment: ExperimentConfig = ExperimentConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    scaling: ScalingConfig = ScalingConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _examples_to_train_on(self) -> Config:
        for setting, train in (("train", self.train), ("fft.train", self.fft.train)):
            if train.examples == "held_out" and not self.data.n_held_out:
                raise ValueError(f"{setting}.examples is held_out, and data.n_held_out says how many: set it above 0")
        return self

    @model_validator(mode="after")
    def _searched_settings(self) -> Config:
        for path, parameter in self.search.space.paths.items():
            try:
                kind = setting_type(type(self), path)
            except ValueError as error:
                raise ValueError(f"search.space.{path} names no setting: {error}") from None
            if isinstance(parameter, SettingRange) and not {int, float} & {kind, *get_args(kind)}:
                raise ValueError(f"search.space.{path} is a range, and {path} is no number; give a list of its values")
        return self

    @model_validator(mode="after")
    def _paths(self) -> Config:
        """Refuse paths that are empty: a variable of a script that is not set, and the folder that one is in."""
        data, run = self.data, self.run
        given = {
            "run.dir": run.dir,
            "model.path": self.model.path,
            "model.pretrained": self.model.pretrained,
            "data.train": data.train,
            "data.test": data.test,
            "data.chat_template": data.chat_template,
            **{f"data.mixture.{number}.path": part.path for number, part in enumerate(data.mixture)},
            **{f"evaluation.task_data.{task}": path for task, path in self.evaluation.task_data.items()},
            **{f"evaluation.tasks.{number}": task for number, task in enumerate(self.evaluation.tasks or [])},
            **{f"evaluation.other_tasks.{number}": task for number, task in enumerate(self.evaluation.other_tasks)},
        }
        if empty := [setting for setting, path in given.items() if path is not None and not path.strip()]:
            raise ValueError(f"{', '.join(empty)} is empty text; give a path, or leave it out")
        return self

    @model_validator(mode="after")
    def _seeds(self) -> Config:
        for setting, seed in self._other_seeds().items():
            if not 0 <= seed + self.run.seed < _SEEDS or self.run.seed < 0:
                more = f" with run.seed {self.run.seed} added" if self.run.seed else ""
                raise ValueError(f"{setting} is {seed}{more}; a seed is a whole number from 0 to {_SEEDS - 1}")
        return self

    @model_validator(mode="after")
    def _domains(self) -> Config:
        for name, changes in self.experiment.domains.items():
            for section, known in (("data", DataConfig), ("evaluation", EvaluationConfig)):
                try:
                    known.model_validate({**getattr(self, section).model_dump(), **changes.get(section, {})})
                except ValidationError as error:
                    raise ValueError(f"experiment.domains.{name}.{section} has {explain(error, known)}") from None
        return self

    def _other_seeds(self) -> dict[str, int]:
        return {
            "data.seed": self.data.seed,
            "train.seed": self.train.seed,
            "fft.train.seed": self.fft.train.seed,
            "search.seed": self.search.seed,
        }

    @model_validator(mode="after")
    def _data_of_tasks(self) -> Config:
        if unknown := sorted(self.evaluation.task_data.keys() - set(self.tasks)):
            raise ValueError(
                f"evaluation.task_data names {', '.join(unknown)}, which neither evaluation.tasks nor other_tasks does"
            )
        return self

    @property
    def tasks(self) -> list[str]:
        """The benchmark tasks that judged models are scored on, those of other domains last."""
        own = self.evaluation.tasks
        if own is None:
            own = list(self.data.domain.tasks) if self.data.domain else []
        return [*own, *(task for task in self.evaluation.other_tasks if task not in own)]

    def seeded(self) -> Config:
        """Return a copy in which ``run.seed`` has been added to every other seed."""
        tree = self.model_dump()
        for section in (tree["data"], tree["train"], tree["fft"]["train"], tree["search"]):
            section["seed"] += self.run.seed
        return Config.model_validate({**tree, "run": {**tree["run"], "seed": 0}})

    def save(self, path: Path) -> None:
        """Write the resolved tree as YAML, whole or not at all."""
        write_text(path, write_yaml(self.model_dump(mode="json")))


def load_config(path: str | os.PathLike[str], overrides: Overrides = ()) -> Config:
    """Read a YAML file, apply ``path=value`` overrides, and validate the whole.

    Args:
        path: a YAML file holding differences from the defaults, or the name of one that comes with the package.
        overrides: settings to change: lines such as ``search.trials=4``, or values by path.

    Raises:
        UserError: the file cannot be read, or a key or value is not allowed.
    """
    try:
        tree = read_yaml(bundled.found(path).read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UserError(
            f"Cannot read the config {path}: {error.strerror}. Give --config a YAML file, or one of these names: "
            f"{', '.join(bundled.names())}."
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"The config {path} is not text. Give --config a YAML file in UTF-8.") from None
    except yaml.YAMLError as error:
        raise UserError(f"The config {path} is not valid YAML: {explain_yaml(error)}.") from None
    if not isinstance(tree, dict):
        raise UserError(f"The config {path} must be a mapping of settings, got {type(tree).__name__}.")
    apply_overrides(tree, overrides)
    return parse_config(tree, where=str(path))


def parse_config(tree: JsonObject, where: str = "the config") -> Config:
    """Validate a tree of settings.

    Raises:
        UserError: naming every key or value that is not allowed.
    """
    _refuse(where, unusable(tree))
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{where} has {explain(error, Config)}") from None
    _refuse(where, mistaken(tree, config.model_dump()))
    return config


def _refuse(where: str, problems: Iterable[str]) -> None:
    if told := list(problems):
        raise UserError(f"{where} has {'; '.join(f'a bad value for {problem}' for problem in told[:_MAX_TOLD])}.")
