"""The paper's experiments: over what each of them varies."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from mft_ray.config.parsing.values import check_name, same_file
from mft_ray.config.section import Section
from mft_ray.config.space import Ratio
from mft_ray.masking import Scope
from mft_ray.utils.json_types import JsonObject

DOMAIN_CHANGES = ("data", "evaluation")
Share = Annotated[float, Field(gt=0, le=1)]


class ExperimentConfig(Section):
    """What `mft-ray experiment` varies. Each run is a comparison on an FFT model of its own seed."""

    seeds: int = Field(3, ge=1, description="each experiment is run so often, with other data, weights and batches")
    ratios: list[Ratio] = Field([0.02, 0.05, 0.1, 0.2, 0.3, 0.5], description="of experiment ratio")
    group_sizes: list[Annotated[int, Field(ge=1)]] | None = Field(
        None, description="decoder layers in a group, of experiment layers; null: an eighth and a quarter of the depth"
    )
    data_shares: list[Share] = Field([0.1, 0.25, 0.5, 1.0], description="of the training data, of experiment data")
    scopes: list[Scope] = Field(["matrix", "layer", "model"], description="of experiment scope")
    domains: dict[str, JsonObject] = Field(
        {},
        description="of experiments transfer and recipes: by a domain's name what it changes of data and evaluation. "
        "In transfer each mask is judged on evaluation.tasks of all domains; on the test examples of those that have "
        "none",
    )

    @field_validator("domains")
    @classmethod
    def _folders(cls, given: dict[str, JsonObject]) -> dict[str, JsonObject]:
        for name, changes in given.items():
            check_name(name, "the domain")
            for section, settings in changes.items():
                if section not in DOMAIN_CHANGES:
                    raise ValueError(f"{name} changes {section}; a domain may change {' and '.join(DOMAIN_CHANGES)}")
                if not isinstance(settings, dict):
                    raise ValueError(f"{name} changes {section} to {settings!r}; a mapping of its settings is wanted")
        if clash := same_file(given):
            raise ValueError(f"the domains {' and '.join(map(repr, clash))} would have the same files; rename one")
        return given
