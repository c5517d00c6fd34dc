"""Which settings each stage of a run is made from, by their paths: once a stage has begun, those are settled."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from mft_ray.config.tree import Config
from mft_ray.errors import UserError
from mft_ray.utils.files import Damaged, read_json
from mft_ray.utils.json_types import JsonObject

Stage = Literal["data", "baseline", "trials", "verdict", "methods", "scores", "training", "experiments"]
STAGES: tuple[Stage, ...] = get_args(Stage)

# The first stages that read a setting, in a search (data, baseline, trials, verdict), a comparison (data, baseline,
# methods, scores) and a single training (data, training). The longest path that a setting lies under counts. A study of
# experiments is made from all settings that are not free.
MADE_FROM: dict[str, tuple[Stage, ...]] = {
    "run": ("data",),
    "run.export_model": ("verdict",),
    "data": ("data",),
    "model": ("baseline", "training"),
    "model.path": ("data",),  # the tokenizer is in it, and the model that training starts from
    "model.architecture": ("data",),
    "model.unselected_dtype": ("trials", "verdict", "methods", "training"),  # of what is learned on a frozen model
    "fft": ("baseline", "training"),
    "fft.continued_lr": ("trials", "verdict", "methods", "training"),
    "scaling": ("baseline", "training"),
    "evaluation": ("verdict", "scores"),
    "evaluation.metric": ("baseline", "training"),
    "evaluation.while_training": ("baseline", "training"),
    "evaluation.max_new_tokens": ("baseline", "training"),
    "train": ("trials", "methods", "training"),
    "mask": ("trials", "methods", "training"),
    "lora": ("trials", "methods", "training"),
    "search": ("trials",),
    "verdict": ("verdict",),
    "compare": ("methods",),
    "experiment": (),
    "method": ("training",),  # of mft-ray train, which is no setting
}
# What may change at any time, and why: results do not depend on it, or it only adds to them.
FREE: dict[str, str] = {
    "run.name": "a label",
    "run.push_seconds": "how often it is written to its object store",
    "run.push_patience_minutes": "how long that may be away",
    "search.trials": "more are added; not below what has begun",
    "search.budget": "what may be spent",
    "search.max_concurrent": "how many at once",
    "search.recycle_after": "how worker groups follow each other",
    "search.same_errors": "when a search gives up",
    "search.keep": "disk",
    "search.storage": "where the study lies: it goes on from its copy in the run folder",
    "experiment.seeds": "more are added; not below what has begun",
    "evaluation.task_batch_size": "memory",
    "tracking": "where results are shown",
    **{
        f"{train}.{name}": why
        for train in ("train", "fft.train")
        for name, why in {
            "micro_batch_tokens": "memory",
            "packing": "speed: the gradient is the same",
            "eval_batch_size": "memory",
            "checkpoint_every": "disk",
        }.items()
    },
    **{
        f"{scaling}.{name}": why
        for scaling in ("scaling", "fft.scaling")
        for name, why in {
            "cpus_per_worker": "what a worker asks the cluster for",
            "max_failures": "how often a run is tried again",
            "prefix_cache_gb": "disk of a node",
            "silence_minutes": "when workers are taken to hang",
            "wait_for_resources_s": "how long a run waits for its place",
            "network_interface": "how workers reach each other",
            "cluster_grows_to": "what the cluster can become",
        }.items()
    },
}
# Of the file that keeps what stages were made with.
SCHEMA = 1
# What is deeper is one value: a row of a comparison, a parameter of a search, a domain.
_DEPTH = 3
_SHOWN = 120


class _LeftOut:
    """No value at all."""

    def __repr__(self) -> str:
        return "left out"


LEFT_OUT = _LeftOut()


@dataclass(frozen=True)
class Difference:
    """A setting that is not what a stage was made with.

    Attributes:
        path: path of the setting.
        stage: the first that was made with it.
        used: value that it was made with.
        now: value in the configuration.
    """

    path: str
    stage: Stage
    used: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.path} was {_shown(self.used)} for the {self.stage}, and is now {_shown(self.now)}"


def stages_of(path: str) -> tuple[Stage, ...]:
    """Return the stages that are made from a setting; none for one that is free to change.

    Args:
        path: path of the setting, such as ``fft.train.lr``.
    """
    if _under(path, FREE):
        return ()
    under = _under(path, MADE_FROM)
    return (*(MADE_FROM[under] if under else ()), "experiments")


def flatten(tree: Mapping[str, Any]) -> JsonObject:
    """Return a tree of settings as value by path, such as ``fft.train.lr``.

    Args:
        tree: as YAML or JSON give it.
    """
    return dict(_leaves(tree, ()))


def nested(flat: Mapping[str, Any]) -> JsonObject:
    """Return the tree that `flatten` has made flat."""
    tree: JsonObject = {}
    for path, value in flat.items():
        *parents, leaf = path.split(".", _DEPTH - 1)
        section = tree
        for parent in parents:
            section = section.setdefault(parent, {})
        section[leaf] = value
    return tree


def made_from(stage: Stage, flat: Mapping[str, Any]) -> JsonObject:
    """Return the settings that a stage is made from.

    Args:
        stage: one of `STAGES`.
        flat: all settings by path.
    """
    return {path: value for path, value in flat.items() if stage in stages_of(path)}


def defaults(tree: Mapping[str, Any]) -> JsonObject:
    """Return every setting's default by path.

    Args:
        tree: a configuration; which kind of model it has is used, for that has no default.
    """
    model: JsonObject = {"path": "model"} if tree["model"].get("path") is not None else {"architecture": {}}
    flat = flatten(Config.model_validate({"model": model}).model_dump(mode="json"))
    # A row that is not there was left out, although there are rows by default.
    return {path: value for path, value in flat.items() if not path.startswith("compare.methods.")}


def differences(
    recorded: Mapping[Stage, Mapping[str, Any]], flat: Mapping[str, Any], by_default: Mapping[str, Any]
) -> list[Difference]:
    """Return what is set otherwise than the stages that have begun were made with.

    Args:
        recorded: by stage the settings that it was made with, by path.
        flat: the configuration's settings by path.
        by_default: what a setting was for a version that did not know it yet, by path.
    """
    # What has become free since it was recorded is free.
    used = {path: value for path, value in used_settings(recorded).items() if _first(path, recorded)}
    now = {path: value for path, value in flat.items() if _first(path, recorded)}
    for path in now.keys() - used.keys():
        if path in by_default and not _gathered(path, used):
            used[path] = by_default[path]
    paths = {path for path in used.keys() | now.keys() if used.get(path, LEFT_OUT) != now.get(path, LEFT_OUT)}
    # A section that was null and is there now differs once, not with each of its settings.
    tops = sorted(path for path in paths if not any(path.startswith(f"{other}.") for other in paths))
    return [Difference(path, _stage(path, recorded), _value(path, used), _value(path, now)) for path in tops]


def used_settings(recorded: Mapping[Stage, Mapping[str, Any]]) -> JsonObject:
    """Return all settings that stages were made with, by path; the first stage that has one counts.

    Args:
        recorded: by stage the settings that it was made with, by path.
    """
    used: JsonObject = {}
    for stage in STAGES:
        for path, value in recorded.get(stage, {}).items():
            used.setdefault(path, value)
    return used


def as_used(flat: Mapping[str, Any], differing: Iterable[Difference]) -> JsonObject:
    """Return the settings with those that differ as they were used.

    Args:
        flat: the configuration's settings by path.
        differing: what `differences` found.
    """
    result = dict(flat)
    for each in differing:
        for path in [path for path in result if path == each.path or path.startswith(f"{each.path}.")]:
            del result[path]
        if each.used is not LEFT_OUT:
            result[each.path] = each.used
    return result


def read_settled(path: Path) -> dict[Stage, JsonObject] | None:
    """Return by stage the settings that it was made with, by path; None for a run of a version that kept none.

    Args:
        path: path of the run's ``work/settled.json``.

    Raises:
        UserError: it cannot be read.
    """
    try:
        schema, stages = read_json(path, _settled)
    except FileNotFoundError:
        return None
    except (OSError, Damaged) as error:
        raise UserError(
            f"{path}, which says what the run was made with, cannot be read: {getattr(error, 'why', error)}. Start a "
            "new run; or, if the run's config.yaml was not changed since it began, delete that file."
        ) from None
    if schema != SCHEMA:
        raise UserError(
            f"{path} has schema {schema}, and this version of mft_ray reads {SCHEMA}. Use the version that the run was "
            "begun with."
        )
    return stages


def _settled(content: Any) -> tuple[Any, dict[Stage, JsonObject]]:
    return content["schema"], {stage: dict(used) for stage, used in content["stages"].items()}


def _leaves(tree: Mapping[str, Any], above: tuple[str, ...]) -> Iterable[tuple[str, Any]]:
    for name, value in tree.items():
        path = (*above, str(name))
        if isinstance(value, Mapping) and value and len(path) < _DEPTH:
            yield from _leaves(value, path)
        else:
            yield ".".join(path), value


def _under(path: str, table: Mapping[str, Any]) -> str | None:
    """Return the longest path of a table that a setting lies under."""
    return max((each for each in table if path == each or path.startswith(f"{each}.")), key=len, default=None)


def _first(path: str, recorded: Mapping[Stage, Mapping[str, Any]]) -> Stage | None:
    return next((stage for stage in STAGES if stage in recorded and stage in stages_of(path)), None)


def _stage(path: str, recorded: Mapping[Stage, Mapping[str, Any]]) -> Stage:
    holding = [stage for stage in STAGES if path in recorded.get(stage, {})]
    return holding[0] if holding else next(stage for stage in recorded if stage in stages_of(path))


def _gathered(path: str, flat: Mapping[str, Any]) -> JsonObject:
    return {other.removeprefix(f"{path}."): value for other, value in flat.items() if other.startswith(f"{path}.")}


def _value(path: str, flat: Mapping[str, Any]) -> Any:
    return flat[path] if path in flat else _gathered(path, flat) or LEFT_OUT


def _shown(value: Any) -> str:
    return textwrap.shorten("null" if value is None else str(value), _SHOWN, placeholder=" …")
