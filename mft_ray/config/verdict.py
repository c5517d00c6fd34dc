"""What the verdict rests on, beside FFT and continued FFT."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from mft_ray.config.methods import METHODS, MethodName
from mft_ray.config.section import Section


def _rival(name: str) -> str:
    if METHODS[name].makes == "tuned model":
        raise ValueError("FFT, and FFT continued, are compared with in any case")
    return name


Rival = Annotated[MethodName, AfterValidator(_rival)]


class VerdictConfig(Section):
    """The verdict on the winner of a search."""

    seeds: int = Field(
        1, ge=1, description="FFT, the winner and continued FFT are trained so often; a gain within their noise is none"
    )
    rivals: list[Rival] = Field(
        [], description="methods trained with the configuration's own settings; the best on validation is judged too"
    )
    real_test: Literal["paired_t", "wilcoxon"] = Field(
        "paired_t", description="of scores that are not right or wrong; those are tested by exact McNemar"
    )
