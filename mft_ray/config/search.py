"""The search: what it may choose, when it stops trials, what it may spend."""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field, field_validator, model_validator

from mft_ray.config.methods import METHODS, MethodName
from mft_ray.config.section import Section
from mft_ray.config.space import SpaceConfig, by_name


class StopConfig(Section):
    """When a trial is stopped early; see `mft_ray.training.stopping`."""

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
    grace_minutes: float = Field(
        10, ge=0, description="for trials at work to reach their next evaluation; then they are ended where they are"
    )

    @model_validator(mode="after")
    def _priced(self) -> BudgetConfig:
        if self.dollars is not None and self.dollars_per_hour is None:
            raise ValueError("dollars needs dollars_per_hour, what the cluster costs")
        return self


class SearchConfig(Section):
    """The search over masks, or over settings of a rival method."""

    method: MethodName = Field("mft", description="what trials do; see mft-ray train --help")
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
    recycle_after: int = Field(50, ge=1, description="trials after which a worker group makes way for a fresh one")
    same_errors: int | None = Field(
        3, ge=1, description="trials that fail with the same error end the search, which can be resumed; null: never"
    )
    keep: int = Field(5, ge=1, description="the best so many ended trials keep their mask on disk")
    storage: str | None = Field(
        None,
        description="postgresql://USER@HOST/DATABASE: Optuna's study is in that server while trials run, with a copy "
        "in the run folder; no password, which PGPASSWORD or ~/.pgpass gives. null: in memory, with the same copy",
    )
    seed: int = 0
    extra_points: list[dict[str, Any]] = Field(
        [], description="configurations tried right after the first, the paper's preset; they lie in the space"
    )

    @model_validator(mode="before")
    @classmethod
    def _short_names(cls, tree: Any) -> Any:
        """Sort out what of the space is named by its path."""
        if not isinstance(tree, dict) or not isinstance(tree.get("space"), dict):
            return tree
        method: Any = tree.get("method", "mft")
        # What is no method at all is refused as such.
        known = isinstance(method, str) and method in METHODS
        return {**tree, "space": by_name(tree["space"], method if known else "mft")}

    @field_validator("storage")
    @classmethod
    def _without_password(cls, url: str | None) -> str | None:
        if url is None:
            return None
        form = "give postgresql://USER@HOST:PORT/DATABASE, or null"
        try:
            parts = urlsplit(url)
            # One that holds a / would pass for a port, or a part of the path.
            secret = parts.password is not None or "@" in parts.path
            _ = None if secret else parts.port
        except ValueError:
            raise ValueError(f"that is no URL; {form}") from None
        if secret or any("password" in name.lower() for name, _ in parse_qsl(parts.query)):
            raise ValueError(
                "a password would be saved with the configuration. Leave it out of the URL, and give it as PGPASSWORD "
                "in the environment of the search, or in ~/.pgpass"
            )
        if parts.scheme != "postgresql":
            raise ValueError(f"PostgreSQL is the one database that this was tried with; {form}")
        if parts.path in ("", "/"):
            raise ValueError(f"it names no database; {form}")
        return url

    @model_validator(mode="after")
    def _paths_of_trials(self) -> SearchConfig:
        for path in self.space.paths:
            sections = METHODS[self.method].sections
            if not path.startswith(tuple(f"{section}." for section in sections)):
                raise ValueError(
                    f"space.{path} cannot be searched: trials of method {self.method} are trained by "
                    f"{' and '.join(sections)}, and all else is the same for every trial and for FFT, which they are "
                    "held against"
                )
        return self

    @model_validator(mode="after")
    def _possible(self) -> SearchConfig:
        if self.objectives != "score" and not METHODS[self.method].masks:
            raise ValueError(f"method {self.method} has no masking ratio; objectives must be score")
        if self.objectives != "score" and self.sampler == "cmaes":
            raise ValueError("sampler cmaes has one objective; for score_and_ratio use tpe, gp or random")
        if self.storage is not None and self.sampler == "cmaes":
            raise ValueError(
                "sampler cmaes unpickles its state from the study, and whoever may write into the database of storage "
                "could run code with that; use tpe, gp or random, or storage null"
            )
        return self
