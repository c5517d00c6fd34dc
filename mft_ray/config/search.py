"""The search: what it may choose, when it stops trials, what it may spend."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mft_ray.config.methods import Method
from mft_ray.config.section import Section
from mft_ray.masking import Init, Schedule, Target

Ratio = Annotated[float, Field(ge=0, lt=1)]


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
    """What the search may choose, of what its method has: one of a list's entries, or anything in a range."""

    ratio: MaskingRatioRange | list[Ratio] = MaskingRatioRange()
    layers: Literal["auto"] | list[str] = Field("auto", description="auto derives groups from the depth")
    lr: LearningRateRange | list[Annotated[float, Field(gt=0)]] = LearningRateRange()
    target: list[Target] = Field(["both"])
    init: list[Init] = Field(["normal", "magnitude"])
    schedule: list[Schedule] = Field(["constant", "anneal"])
    rank: list[Annotated[int, Field(ge=1)]] = Field([8, 16, 64], description="of LoRA")
    weight_decay: list[Annotated[float, Field(ge=0)]] = Field([0.0, 0.01, 0.1], description="of FFT")
    dropout: list[Annotated[float, Field(ge=0, lt=1)]] = Field([0.0, 0.1], description="of FFT")


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
    """The search over masks, or over settings of a rival method."""

    method: Method = Field("mft", description="what trials do; see python -m mft_ray.train --help")
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
        if self.objectives != "score" and self.method in ("lora", "continued_fft", "fft"):
            raise ValueError(f"method {self.method} has no masking ratio; objectives must be score")
        if self.objectives != "score" and self.sampler == "cmaes":
            raise ValueError("sampler cmaes has one objective; for score_and_ratio use tpe, gp or random")
        return self
