"""YAML as people write it, and single settings over it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from mft_ray.config.parsing.explain import explain_yaml
from mft_ray.errors import UserError
from mft_ray.utils.json_types import JsonObject

# Settings to change: values by path, or lines as the command has them.
Overrides = Mapping[str, Any] | Sequence[str]
# Far more than any configuration has; a text of aliases to aliases of a few lines has billions.
_MAX_VALUES = 100_000
_MAX_DEPTH = 50

_NOT_OURS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:timestamp")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-3 as text, 2:4 as 124 (in base 60), 2024-01-17 as a date: here a number, a pattern, text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (pyyaml's own way)
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NOT_OURS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _Dumper(yaml.SafeDumper):
    """Puts in quotes what `_Loader` would not read as text."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: list(resolvers) for first, resolvers in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }

    def ignore_aliases(self, data: Any) -> bool:
        """Write what occurs twice twice."""
        return True


for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:int",
        re.compile(r"[-+]?(0|[1-9][\d_]*|0[xX][\da-fA-F_]*[\da-fA-F][\da-fA-F_]*|0b[01_]*[01][01_]*|0_*[0-7][0-7_]*)$"),
        list("-+0123456789"),
    )
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
    )


def read_yaml(text: str) -> Any:
    """Read a YAML text of settings.

    Raises:
        yaml.YAMLError: it is not valid, has a key twice, or no end.
    """
    # Editors begin a file with a byte order mark, some with two.
    loader = _Loader(text.lstrip("\ufeff"))
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, [], _Counter())
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deep for a configuration") from None
    except (ValueError, OverflowError, TypeError, AttributeError) as error:  # such as the date 2024-13-45
        raise yaml.YAMLError(f"a value cannot be read ({' '.join(str(error).split())[:200]})") from None
    finally:
        loader.dispose()


def write_yaml(tree: JsonObject) -> str:
    """Return a text that `read_yaml` reads as the same tree."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Counter:
    """Counts values, those behind aliases as often as they are named."""

    def __init__(self) -> None:
        self.seen = 0

    def count(self, node: yaml.Node) -> None:
        self.seen += 1
        if self.seen > _MAX_VALUES:
            raise yaml.MarkedYAMLError(
                problem=f"more than {_MAX_VALUES:,} values, most of them by aliases", problem_mark=node.start_mark
            )


def _check(node: yaml.Node, above: list[yaml.Node], counter: _Counter) -> None:
    """Go through all values.

    Raises:
        yaml.YAMLError: a key is there twice, a value is within itself, or there are more than anybody writes.
    """
    counter.count(node)
    if any(node is parent for parent in above):
        raise yaml.MarkedYAMLError(problem="a value that is within itself", problem_mark=node.start_mark)
    if len(above) >= _MAX_DEPTH:
        raise yaml.MarkedYAMLError(
            problem=f"values within values, {_MAX_DEPTH} deep, which no configuration has", problem_mark=node.start_mark
        )
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        below = [part for pair in node.value for part in pair]
    else:
        below = node.value if isinstance(node, yaml.SequenceNode) else []
    for part in below:
        _check(part, [*above, node], counter)


def _check_keys(node: yaml.MappingNode) -> None:
    """Refuse a key that is there twice: YAML's own reader takes the last and says nothing."""
    seen: dict[tuple[str, str], yaml.Node] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(problem="a key that is not text", problem_mark=key.start_mark)
        first = seen.setdefault((key.tag, key.value), key)
        if first is not key:
            raise yaml.MarkedYAMLError(
                problem=f"the key {key.value} is there twice, first in line {first.start_mark.line + 1}; leave one out",
                problem_mark=key.start_mark,
            )


def apply_overrides(tree: JsonObject, overrides: Overrides) -> None:
    """Change settings of a tree.

    Args:
        tree: tree of settings as YAML gives it; changed in place.
        overrides: values by path, or lines such as ``search.trials=4``, whose values are read as YAML.

    Raises:
        UserError: a line is not of that form, or a path leads through a value.
    """
    if isinstance(overrides, Mapping):
        for path, value in overrides.items():
            _put(tree, str(path), os.fspath(value) if isinstance(value, os.PathLike) else value, f"override {path!r}")
        return
    for line in [overrides] if isinstance(overrides, str) else overrides:
        path, equals, text = line.partition("=")
        if not equals or not path:
            raise UserError(f"--set {line!r} is not of the form path=value, such as --set search.trials=4.")
        try:
            value = read_yaml(text)
        except yaml.YAMLError as error:
            raise UserError(f"--set {line!r}: the value is not valid YAML: {explain_yaml(error)}.") from None
        _put(tree, path, value, f"--set {line!r}")


def _put(tree: JsonObject, path: str, value: Any, said: str) -> None:
    *parents, leaf = path.split(".")
    for parent in parents:
        child = tree.get(parent)
        if child is None:  # absent, or a section left empty
            child = tree[parent] = {}
        if not isinstance(child, dict):
            raise UserError(f"{said}: {parent} is a value, not a section.")
        tree = child
    tree[leaf] = value
