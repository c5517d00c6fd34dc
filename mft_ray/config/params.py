"""A configuration with what a search chose for one trial."""

from __future__ import annotations

from typing import Any

from mft_ray.config.methods import METHODS
from mft_ray.config.parsing.paths import with_settings
from mft_ray.config.tree import Config

# What a search, or a user, chose for a trial: values by short name, or path, of a setting.
Params = dict[str, Any]


def apply(config: Config, params: Params) -> Config:
    """Return the configuration with what the search chose for one trial.

    Args:
        config: configuration of the search.
        params: values by short name or path.

    Raises:
        UserError: no mask can be so, or a setting cannot have its value.
    """
    short = METHODS[config.search.method].short_names
    values = {short.get(name, name): value for name, value in params.items()}
    if values.get("train.epochs") is not None:  # the steps were by default, or came of other epochs
        values = {"train.steps": type(config.train).model_fields["steps"].default, **values}
    return with_settings(config, values, "a trial's configuration")


_LABELS = {
    "ratio": "ratio {:.3f}",
    "layers": "layers {}",
    "target": "{}",
    "lr": "lr {:.1e}",
    "init": "{} init",
    "schedule": "{} ratio",
    "weight_decay": "weight decay {}",
}


def describe(point: Params) -> str:
    """Return a configuration in one short line."""
    return ", ".join(_LABELS.get(parameter, parameter + " {}").format(value) for parameter, value in point.items())
