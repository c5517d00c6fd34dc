"""Settings by their path, such as ``train.warmup``: of what type they are, and a tree with some of them changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import BaseModel, TypeAdapter, ValidationError

from mft_ray.config.parsing.explain import explain
from mft_ray.errors import UserError
from mft_ray.utils.json_types import JsonObject

Tree = TypeVar("Tree", bound=BaseModel)


def setting_type(root: type[BaseModel], path: str) -> Any:
    """Return the annotation of a setting.

    Args:
        root: class of the whole tree.
        path: path of the setting.

    Raises:
        ValueError: there is no such setting, naming those that there are.
    """
    annotation: Any = root
    walked: list[str] = []
    for part in path.split("."):
        known = {name: kind for member in _sections(annotation) for name, kind in _hints(member).items()}
        if part not in known:
            place = ".".join(walked) or "the top level"
            if not known:
                raise ValueError(f"{place} is a setting and has no {part}")
            raise ValueError(f"{place} has no {part} (known there: {', '.join(sorted(known))})")
        annotation = known[part]
        walked.append(part)
    if list(_sections(annotation)):
        raise ValueError(f"{path} is a section, not a setting")
    return annotation


def with_settings(tree: Tree, values: Mapping[str, Any], where: str = "the config") -> Tree:
    """Return a copy with some settings changed, each section checked as if it had been read so.

    Args:
        tree: tree of settings.
        values: new values by path.
        where: said of a value that is not allowed.

    Raises:
        UserError: a value is not allowed there, or not beside the others.
    """
    by_section: dict[str, JsonObject] = {}
    for path, value in values.items():
        head, dot, rest = path.partition(".")
        assert dot, f"{path} names no section"
        by_section.setdefault(head, {})[rest] = value
    update = {name: _changed(getattr(tree, name), changes, name, where) for name, changes in by_section.items()}
    return tree.model_copy(update=update)


def _changed(section: Any, changes: Mapping[str, Any], name: str, where: str) -> Any:
    deeper: dict[str, JsonObject] = {}
    here: JsonObject = {}
    for path, value in changes.items():
        head, dot, rest = path.partition(".")
        if dot:
            deeper.setdefault(head, {})[rest] = value
        else:
            here[head] = value
    now = {field: getattr(section, field) for field in _hints(type(section))}
    now |= {head: _changed(now[head], inner, f"{name}.{head}", where) for head, inner in deeper.items()}
    try:
        return TypeAdapter(type(section)).validate_python({**now, **here})
    except ValidationError as error:
        raise UserError(f"{where}, in {name}, has {explain(error, type(section))}") from None


def _sections(annotation: Any) -> list[Any]:
    """Return the classes with settings in an annotation such as ``Section | None``."""
    members = [annotation, *get_args(annotation)]
    return [member for member in members if isinstance(member, type) and _hints(member)]


def _hints(section: Any) -> JsonObject:
    if isinstance(section, type) and issubclass(section, BaseModel):
        return {name: field.annotation for name, field in section.model_fields.items()}
    if isinstance(section, type) and is_dataclass(section):
        hints = get_type_hints(section)
        return {field.name: hints[field.name] for field in fields(section)}
    return {}
