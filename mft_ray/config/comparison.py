"""Which methods are compared, and what each changes."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from mft_ray.config.methods import METHODS
from mft_ray.config.parsing.values import check_name, same_file
from mft_ray.config.section import Section
from mft_ray.utils.json_types import JsonObject

# Of the tree, what a row of the comparison may change.
CHANGEABLE = ("train", "mask", "lora", "fft")


def _all_methods() -> dict[str, JsonObject]:
    return {name: {} for name in METHODS if name != "fft"}


class CompareConfig(Section):
    """The rows of a comparison; FFT, which all others start from, is always the first."""

    methods: dict[str, JsonObject] = Field(
        default_factory=_all_methods,
        description="by name of a row what it changes of this configuration, such as {train: {lr: 1e-3}}, and its "
        "method where that is not its name; or a list of methods",
    )
    max_concurrent: int = Field(
        1, ge=1, description="trained at once; more take less time, and what is said of seconds is then less comparable"
    )

    @field_validator("methods", mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        named = isinstance(given, list) and all(isinstance(name, str) for name in given)
        return {name: {} for name in given} if named else given

    @field_validator("methods")
    @classmethod
    def _known(cls, given: dict[str, JsonObject]) -> dict[str, JsonObject]:
        for name, changes in given.items():
            method = changes.get("method", check_name(name, "the row"))
            if not isinstance(method, str) or method not in METHODS:
                raise ValueError(f"{name} is of method {method!r}; there are {', '.join(METHODS)}")
            if unknown := sorted(changes.keys() - {"method", *CHANGEABLE}):
                raise ValueError(f"{name} changes {', '.join(unknown)}; a row may change {', '.join(CHANGEABLE)}")
            for section in changes.keys() - {"method"}:
                if not isinstance(changes[section], dict):
                    raise ValueError(
                        f"{name} changes {section} to {changes[section]!r}; a mapping of its settings is wanted"
                    )
        if clash := same_file(given):
            raise ValueError(f"the rows {' and '.join(map(repr, clash))} would have the same files; rename one")
        if not given:
            raise ValueError("there is nothing to compare FFT with")
        return given
