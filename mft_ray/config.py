"""Every setting, once: its name, default, allowed values and meaning.

A YAML file holds only differences from these defaults; unknown keys are refused. The resolved tree is
saved beside every result, so that a run folder is enough to run again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mft_ray.errors import UserError
from mft_ray.explain import explain, explain_yaml
from mft_ray.masking import Init, MaskSettings, Schedule, Target

Ratio = Annotated[float, Field(ge=0, lt=1)]
Metric = Literal["exact_match", "answer_logprob", "generated_match"]


class Section(BaseModel):
    """A part of the configuration: unknown keys are errors, assignments are validated."""

    # A layer group such as 4 is a number to YAML.
    model_config = ConfigDict(extra="forbid", validate_assignment=True, coerce_numbers_to_str=True)


class ModelConfig(Section):
    """The model that FFT starts from, or that is already fine-tuned (``fft.given``)."""

    path: str | None = Field(None, description="local folder or hub id of any AutoModelForCausalLM")
    architecture: dict[str, Any] | None = Field(
        None, description="instead of path: model_type and settings of a new, randomly initialised model"
    )
    before: str | None = Field(
        None, description="with fft.given: the checkpoint before fine-tuning, for mask.removes delta"
    )
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="how frozen weights are held")
    attention: str | None = Field(None, description="attn_implementation passed to transformers")

    @model_validator(mode="after")
    def _one_source(self) -> ModelConfig:
        if (self.path is None) == (self.architecture is None):
            raise ValueError("give exactly one of model.path and model.architecture")
        return self


class DataConfig(Section):
    """Where examples come from and how they are split. The splits never share a prompt."""

    task: Literal["arithmetic", "gsm8k", "chat"] = "chat"
    train: str | None = Field(None, description="JSONL/JSON/Parquet file, or hub dataset id (gsm8k, chat)")
    test: str | None = Field(None, description="file or hub id of the test split; else held out of train")
    n_train: int | None = Field(None, ge=1, description="training examples; null takes all that are left")
    n_validation: int = Field(200, ge=2)
    n_test: int = Field(1000, ge=2)
    max_length: int = Field(1024, ge=8, description="tokens; longer examples are cut at the end")
    prompt_column: str | None = Field(None, description="chat: with answer_column, instead of messages")
    answer_column: str | None = None
    messages_column: str = "messages"
    digits: int = Field(2, ge=1, le=4, description="arithmetic: digits of each operand")
    seed: int = Field(0, description="what is generated and how it is split")


class TrainConfig(Section):
    """One training run; the same fields for FFT and for masks."""

    steps: int = Field(300, ge=0, description="optimizer steps at most; 0 only evaluates the start")
    max_tokens: int | None = Field(None, ge=1, description="stop after so many input tokens")
    batch_size: int = Field(32, ge=1, description="examples per optimizer step, over all workers")
    micro_batch_size: int | None = Field(None, ge=1, description="examples per forward per worker")
    optimizer: Literal["adamw", "rmsprop"] = Field(
        "adamw", description="rmsprop keeps one state per weight instead of two, for memory"
    )
    lr: float = Field(2e-5, gt=0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: float = Field(0.03, ge=0, lt=1, description="fraction of the steps")
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = Field(1.0, ge=0, description="gradient norm; 0 is off")
    eval_every: int = Field(50, ge=1, description="steps between evaluations on validation")
    checkpoint_every: int = Field(1, ge=1, description="evaluations between checkpoints")
    eval_batch_size: int = Field(64, ge=1)
    patience: int | None = Field(None, ge=1, description="stop after so many evaluations without a new best")
    seed: int = 0


class ScalingConfig(Section):
    """What one training run asks of the cluster."""

    workers: int = Field(1, ge=1)
    cpus_per_worker: float = Field(1, gt=0)
    gpus_per_worker: float = Field(0, ge=0)
    zero_stage: Literal[0, 1, 2, 3] = 0
    compute: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16 is autocast; scores stay fp32")
    gradient_checkpointing: bool = False
    max_failures: int = Field(1, ge=0, description="restarts of a run whose worker died")
    wait_for_resources_s: float = Field(900, gt=0, description="how long the cluster may take to grow")
    cluster_grows_to: dict[str, float] | None = Field(
        None, description="what an autoscaling cluster can become, such as {CPU: 64, GPU: 8}; null: found out"
    )


class FftTrainConfig(TrainConfig):
    """As `TrainConfig`, but by default until validation stops improving."""

    steps: int = Field(2000, ge=1, description="optimizer steps at most")
    patience: int | None = Field(5, ge=1, description="stop after so many evaluations without a new best")


class FftConfig(Section):
    """The FFT baseline: given, or trained here until validation stops improving."""

    given: bool = Field(False, description="model.path is already fine-tuned: take it as the baseline")
    train: FftTrainConfig = FftTrainConfig()
    scaling: ScalingConfig | None = Field(None, description="what FFT asks of the cluster; null: as scaling")
    continued_lr: float | None = Field(None, gt=0, description="lr of continued FFT; null takes fft.train.lr")


class FloatRange(Section):
    """A range of numbers to search, both ends included."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> FloatRange:
        if self.low > self.high or (self.log and self.low <= 0):
            raise ValueError(f"needs low <= high (and low > 0 with log), got {self.low} and {self.high}")
        return self


class MaskingRatioRange(FloatRange):
    """A range of masking ratios."""

    low: Ratio = 0.02
    high: Ratio = 0.5


class LearningRateRange(FloatRange):
    """A range of learning rates, searched by order of magnitude."""

    low: float = Field(2e-5, gt=0)
    high: float = Field(1e-2, gt=0)
    log: bool = True


class SpaceConfig(Section):
    """What the search may choose. A list is a choice among its entries, a range anything in it."""

    ratio: MaskingRatioRange | list[Ratio] = MaskingRatioRange()
    layers: Literal["auto"] | list[str] = Field("auto", description="auto derives groups from the depth")
    lr: LearningRateRange | list[Annotated[float, Field(gt=0)]] = LearningRateRange()
    target: list[Target] = ["both"]
    init: list[Init] = ["normal", "magnitude"]
    schedule: list[Schedule] = ["constant", "anneal"]


class StopConfig(Section):
    """When a trial is stopped early; see `search.stopping`."""

    below_fft: bool = True
    grace: float = Field(0.5, ge=0, le=1, description="fraction of the steps before below_fft may stop")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="that a trial would end below FFT, or is ahead by target")
    plateau: int | None = Field(4, ge=1, description="evaluations without progress beyond noise; null is off")
    target: float | None = Field(None, ge=0, description="stop when surely ahead of FFT by so much; null is off")


class BudgetConfig(Section):
    """What the trials of a search may spend; at a limit it ends with a verdict on what it has."""

    hours: float | None = Field(None, gt=0, description="of wall time, over all sessions")
    tokens: int | None = Field(None, ge=1, description="input tokens that trials train on")
    dollars: float | None = Field(None, gt=0, description="wall time x dollars_per_hour")
    dollars_per_hour: float | None = Field(None, gt=0, description="what the cluster costs while trials run")

    @model_validator(mode="after")
    def _priced(self) -> BudgetConfig:
        if self.dollars is not None and self.dollars_per_hour is None:
            raise ValueError("dollars needs dollars_per_hour, what the cluster costs")
        return self


class SearchConfig(Section):
    """The search over masks."""

    trials: int = Field(16, ge=1)
    budget: BudgetConfig = BudgetConfig()
    space: SpaceConfig = SpaceConfig()
    stop: StopConfig = StopConfig()
    objectives: Literal["score", "score_and_ratio"] = Field(
        "score",
        description="what the sampler looks for: high scores, or the Pareto front of high scores and high masking "
        "ratios. The verdict is on the highest score either way",
    )
    sampler: Literal["tpe", "random", "cmaes", "gp"] = Field("tpe", description="Optuna's; tpe is multivariate")
    startup_trials: int = Field(6, ge=1, description="random trials before the sampler proposes")
    max_concurrent: int | None = Field(None, ge=1, description="null: what the cluster's capacity allows")
    isolate: bool = Field(False, description="a fresh worker group for every trial; slower by its start")
    recycle_after: int = Field(50, ge=1, description="trials after which a worker group makes way for a fresh one")
    keep: int = Field(5, ge=1, description="the best so many ended trials keep their mask on disk")
    seed: int = 0
    extra_points: list[dict[str, Any]] = Field([], description="configurations tried right after the paper's preset")

    @model_validator(mode="after")
    def _possible(self) -> SearchConfig:
        if self.objectives != "score" and self.sampler == "cmaes":
            raise ValueError("sampler cmaes has one objective; for score_and_ratio use tpe, gp or random")
        return self


class EvaluationConfig(Section):
    """What counts as better. Every metric is higher-is-better."""

    metric: Metric = Field("answer_logprob", description="decides: which trial is best, and the verdict")
    while_training: Metric | None = Field(
        None,
        description="what training is evaluated, stopped and given its best state by; null: metric, or answer_logprob "
        "where that generates. A trial's best mask is then scored by metric once, unless it was stopped below FFT",
    )
    extra: list[Metric] = Field([], description="also judged on test, for the report")
    extra_n: int | None = Field(None, ge=1, description="examples for the extra metrics; null takes all")
    max_new_tokens: int = Field(256, ge=1)
    resamples: int = Field(10_000, ge=100, description="of the paired bootstrap")

    @property
    def watched(self) -> Metric:
        """The metric while training: one forward per example unless asked for otherwise."""
        return self.while_training or ("answer_logprob" if self.metric == "generated_match" else self.metric)


class RunConfig(Section):
    """One search from backbone to verdict."""

    name: str = "search"
    dir: str | None = Field(None, description="run folder, seen by every node; null: runs/NAME-TIME")
    export_model: bool = Field(True, description="leave the masked model in RUN/best/model, ready to load")
    seed: int = Field(0, description="added to every other seed: one number repeats the whole run")


class Config(Section):
    """The whole tree."""

    run: RunConfig = RunConfig()
    model: ModelConfig
    data: DataConfig = DataConfig()
    fft: FftConfig = FftConfig()
    mask: MaskSettings = MaskSettings()
    train: TrainConfig = TrainConfig()
    search: SearchConfig = SearchConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    scaling: ScalingConfig = ScalingConfig()

    def seeded(self) -> Config:
        """Return a copy in which ``run.seed`` has been added to every other seed."""
        tree = self.model_dump()
        for section in (tree["data"], tree["train"], tree["fft"]["train"], tree["search"]):
            section["seed"] += self.run.seed
        return Config.model_validate({**tree, "run": {**tree["run"], "seed": 0}})

    def save(self, path: Path) -> None:
        """Write the resolved tree as YAML, whole or not at all."""
        partial = path.with_name(path.name + ".partial")
        partial.write_text(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))
        os.replace(partial, path)


def load_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply ``path=value`` overrides, and validate the whole.

    Args:
        path: a YAML file holding differences from the defaults.
        overrides: entries such as ``search.trials=4``; values are parsed as YAML.

    Raises:
        UserError: the file cannot be read, or a key or value is not allowed.
    """
    try:
        tree = _read_yaml(Path(path).read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UserError(
            f"Cannot read the config {path}: {error.strerror}. Give --config a YAML file, "
            "such as tune_spaces/quickstart.yaml."
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"The config {path} is not text. Give --config a YAML file in UTF-8.") from None
    except yaml.YAMLError as error:
        raise UserError(f"The config {path} is not valid YAML: {explain_yaml(error)}.") from None
    if not isinstance(tree, dict):
        raise UserError(f"The config {path} must be a mapping of settings, got {type(tree).__name__}.")
    for override in overrides:
        _apply(tree, override)
    return parse_config(tree, where=str(path))


def parse_config(tree: dict[str, Any], where: str = "the config") -> Config:
    """Validate a tree of settings.

    Raises:
        UserError: naming every key or value that is not allowed.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{where} has {explain(error, Config)}") from None


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-3 as text and 2:4 as 124 (in base 60); a person means a number and a pattern."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (pyyaml's own way)
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:int"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"[-+]?(0|[1-9][\d_]*|0[xX][\da-fA-F_]+|0b[01_]+|0[0-7_]+)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _read_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override!r} is not of the form path=value, such as --set search.trials=4.")
    *parents, leaf = key.split(".")
    for parent in parents:
        child = tree.get(parent)
        if child is None:  # absent, or a section left empty
            child = tree[parent] = {}
        if not isinstance(child, dict):
            raise UserError(f"--set {override!r}: {parent} is a value, not a section.")
        tree = child
    try:
        tree[leaf] = _read_yaml(value)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override!r}: the value is not valid YAML: {explain_yaml(error)}.") from None
