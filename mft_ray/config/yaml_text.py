"""YAML as people write it, and single settings over it."""

from __future__ import annotations

import re
from typing import Any

import yaml

from mft_ray.config.explain import explain_yaml
from mft_ray.errors import UserError


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-3 as text and 2:4 as 124 (in base 60); a person means a number and a pattern."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (pyyaml's own way)
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:int"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"[-+]?(0|[1-9][\d_]*|0[xX][\da-fA-F_]+|0b[01_]+|0[0-7_]+)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_yaml(text: str) -> Any:
    """Read a YAML text.

    Raises:
        yaml.YAMLError: it is not valid.
    """
    return yaml.load(text, Loader=_Loader)


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Change one setting of a tree.

    Args:
        tree: as YAML gives it; changed in place.
        override: such as ``search.trials=4``; the value is read as YAML.

    Raises:
        UserError: it is not of that form.
    """
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override!r} is not of the form path=value, such as --set search.trials=4.")
    *parents, leaf = key.split(".")
    for parent in parents:
        child = tree.get(parent)
        if child is None:  # absent, or a section left empty
            child = tree[parent] = {}
        if not isinstance(child, dict):
            raise UserError(f"--set {override!r}: {parent} is a value, not a section.")
        tree = child
    try:
        tree[leaf] = read_yaml(value)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override!r}: the value is not valid YAML: {explain_yaml(error)}.") from None
