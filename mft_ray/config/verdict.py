"""What the verdict rests on, beside FFT and continued FFT."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mft_ray.config.section import Section

Rival = Literal["lora", "random_mask", "l1_mask", "wanda_mask", "movement", "mft"]


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
