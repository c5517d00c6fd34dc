"""What is wrong with a configuration, in one paragraph for the person who wrote it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
# What keys were called once, by path.
_MICRO = "micro_batch_tokens (of tokens, not examples)"
_RENAMED = {
    "study": "experiment",
    "model.before": "model.pretrained",
    "search.isolate": "search.recycle_after: 1",
    "train.micro_batch_size": f"train.{_MICRO}",
    "fft.train.micro_batch_size": f"fft.train.{_MICRO}",
}
_MAX_SHOWN = 300  # characters of a value
# Of an address: who comes before its host, and what follows a name such as password or secret_key.
_PASSWORD = re.compile(r"(://)\S*@|(\w*(?:password|key|secret|token|credential)\w*=)[^&\s'\"]+", re.IGNORECASE)
_WRONG_SHAPE = ("list_type", "model_type")


def explain(error: ValidationError, root: type[Any]) -> str:
    """Say of every problem where it is, what was given and what is allowed.

    Args:
        error: what pydantic found.
        root: the class that was read, the configuration's or a section's, to name the keys that there are.
    """
    items = error.errors(include_url=False)
    paths = [_path(item["loc"], keep_last=item["type"] in _UNKNOWN) for item in items]
    problems = []
    for item, path in zip(items, paths, strict=True):
        where = ".".join(path) or "the top level"
        if item["type"] in _UNKNOWN:
            known = ", ".join(_known(root, item["loc"][:-1]))
            hint = f"it is called {_RENAMED[where]} now" if where in _RENAMED else f"known here: {known}"
            problems.append(f"an unknown key {where} ({hint})")
        elif item["type"] == "missing":
            problems.append(f"no {where}, which must be given")
        elif item["type"] in _WRONG_SHAPE and any(_inside(other, path) for other in paths):
            continue  # the form that was not meant: what is wrong within the other one is told
        elif not path:
            problems.append(f"settings that cannot be: {item['msg'].removeprefix('Value error, ')}")
        else:
            problems.append(f"a bad value for {where}: got {_shown(item['input'])}; {item['msg']}")
    return "; ".join(problems) + "."


def _shown(given: Any) -> str:
    text = _PASSWORD.sub(lambda found: "://***@" if found[1] else f"{found[2]}***", repr(given))
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def explain_yaml(error: yaml.YAMLError) -> str:
    """Say what is wrong with a YAML text and where, in one line."""
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return f"{where}{getattr(error, 'problem', None) or ' '.join(str(error).split())}"


def _path(location: tuple[int | str, ...], keep_last: bool) -> list[str]:
    """Leave out the members of unions, which pydantic names: people wrote only keys and positions."""
    last = len(location) - 1
    return [
        str(part)
        for index, part in enumerate(location)
        if (keep_last and index == last) or not _is_union_member(str(part))
    ]


def _is_union_member(part: str) -> bool:
    return "[" in part or "(" in part or part in _section_names(BaseModel)


def _section_names(section: type[BaseModel]) -> set[str]:
    below = section.__subclasses__()
    return {name.__name__ for name in below}.union(*map(_section_names, below))


def _inside(other: list[str], path: list[str]) -> bool:
    return len(other) > len(path) and other[: len(path)] == path


def _known(root: Any, location: tuple[int | str, ...]) -> list[str]:
    """The keys of the section at a location."""
    sections = [root]
    for part in location:
        members = [member for section in sections for member in _members(_fields(section).get(str(part)))]
        sections = members or [section for section in sections if getattr(section, "__name__", "") == part] or sections
    return sorted({name for section in sections for name in _fields(section)})


def _members(annotation: Any) -> Iterator[Any]:
    """The classes with fields in an annotation such as ``Section | list[float] | None``."""
    if _fields(annotation):
        yield annotation
    for inner in get_args(annotation):
        yield from _members(inner)


def _fields(section: Any) -> dict[str, Any]:
    if isinstance(section, type) and issubclass(section, BaseModel):
        return {name: field.annotation for name, field in section.model_fields.items()}
    return {field.name: field.type for field in fields(section)} if is_dataclass(section) else {}
