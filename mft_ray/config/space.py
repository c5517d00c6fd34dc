"""What a search may choose: ranges and lists, by a short name or by a setting's path."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from mft_ray.config.methods import METHODS
from mft_ray.config.section import Section
from mft_ray.masking import Init, Schedule, Target
from mft_ray.utils.json_types import JsonObject

Ratio = Annotated[float, Field(ge=0, lt=1)]


class FloatRange(Section):
    """A range of numbers to search, both ends included."""

    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
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

    low: float = Field(2e-5, gt=0, allow_inf_nan=False)
    high: float = Field(1e-2, gt=0, allow_inf_nan=False)
    log: bool = True


class SettingRange(FloatRange):
    """A range of any setting that is a number; of one that counts, whole numbers."""

    step: float | None = Field(None, gt=0, description="distance between the values; null: any")

    @model_validator(mode="after")
    def _one_scale(self) -> SettingRange:
        if self.log and self.step is not None:
            raise ValueError("has log and step; a range on a log scale has no step")
        return self


def _choice(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError("a value to choose must be a number, a text, true, false or null")


Choices = Annotated[list[Annotated[Any, AfterValidator(_choice)]], Field(min_length=1)]


class SpaceConfig(Section):
    """What the search may choose, of what its method has: one of a list's entries, or anything in a range.

    Any other setting that a trial is trained by can be searched by its path, such as ``train.warmup: {low: 0, high:
    0.1}`` or ``mask.scope: [matrix, layer]``.
    """

    ratio: MaskingRatioRange | Annotated[list[Ratio], Field(min_length=1)] = MaskingRatioRange()
    layers: Literal["auto"] | Annotated[list[str], Field(min_length=1)] = Field(
        "auto", description="auto derives groups from the depth"
    )
    lr: LearningRateRange | Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = LearningRateRange()
    target: list[Target] = Field(["both"], min_length=1)
    init: list[Init] = Field(["normal", "magnitude"], min_length=1)
    schedule: list[Schedule] = Field(["constant", "anneal"], min_length=1)
    rank: list[Annotated[int, Field(ge=1)]] = Field([8, 16, 64], min_length=1, description="of LoRA")
    weight_decay: list[Annotated[float, Field(ge=0)]] = Field([0.0, 0.01, 0.1], min_length=1, description="of FFT")
    dropout: list[Annotated[float, Field(ge=0, lt=1)]] = Field([0.0, 0.1], min_length=1, description="of FFT")
    paths: dict[str, SettingRange | Choices] = Field({}, description="any other settings, by their path")


def by_name(space: JsonObject, method: str) -> JsonObject:
    """Return a search space, as people write it, as `SpaceConfig` has it.

    Args:
        space: parameters by short name or by path, or nested as sections.
        method: whose short names a path is given, where it has one.

    Raises:
        ValueError: one setting is named twice.
    """
    named = {key: value for key, value in space.items() if not _is_path(key, value)}
    given = named.pop("paths", None)
    if given is not None and not isinstance(given, dict):
        return {**named, "paths": given}  # refused as what it is
    paths = dict(given or {})
    short = {path: name for name, path in METHODS[method].short_names.items()}
    for key, value in space.items():
        for path, parameter in _leaves(key, value) if _is_path(key, value) else ():
            name, into = (short[path], named) if path in short else (path, paths)
            if name in into:
                also = f" and {name}, which are the same setting" if name != path else " twice"
                raise ValueError(f"space has {path}{also}; leave one out")
            into[name] = parameter
    return {**named, "paths": paths} if paths else named


def _is_path(key: Any, value: Any) -> bool:
    return isinstance(key, str) and (
        "." in key or (key in ("mask", "train", "lora", "fft") and isinstance(value, dict))
    )


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what is to be searched in a nested section, by path."""
    if isinstance(value, dict) and value and not value.keys() & {"low", "high"}:
        for key, inner in value.items():
            yield from _leaves(f"{path}.{key}", inner)
    else:
        yield path, value
