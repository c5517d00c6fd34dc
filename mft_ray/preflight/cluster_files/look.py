"""Which kind of cluster a file is for, and what is looked at in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from mft_ray.config import Config
from mft_ray.errors import UserError
from mft_ray.preflight.cluster_files import kuberay, ray_up, slurm
from mft_ray.preflight.cluster_files.common import Wanted, look_at_text
from mft_ray.preflight.finding import Finding

_KINDS = (
    "a file of `ray up` (it has provider), of KubeRay (kind RayJob), a script of sbatch (it has #SBATCH lines), or a "
    "Dockerfile (its first instruction is FROM)"
)


def look_at_file(path: Path, config: Config | None = None, runs: Path | None = None) -> Iterator[Finding]:
    """Look at a cluster's file; nothing is started, and no cloud is asked.

    Args:
        path: path of the file.
        config: configuration of the search that is to run there; None looks at the file alone.
        runs: folder that runs go to, as nodes see it; None takes that of the files that come with mft_ray.

    Raises:
        UserError: it cannot be read, or is of none of the kinds.
    """
    text = _read(path)
    wanted = Wanted.of(config, runs)
    if any(line.startswith("#SBATCH") for line in text.splitlines()):
        yield Finding("ok", "kind", "a script for sbatch")
        yield from look_at_text(text, "#(?!SBATCH)")
        yield from slurm.look(text, wanted)
    elif _first_word(text) in ("FROM", "ARG"):
        yield Finding("ok", "kind", "a Dockerfile; its instructions are docker's to check")
        yield from look_at_text(text)
    else:
        yield from _look_at_yaml(path, text, wanted)


def _look_at_yaml(path: Path, text: str, wanted: Wanted) -> Iterator[Finding]:
    try:
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}" if mark else "YAML"
        yield Finding("wrong", where, f"is not YAML: {getattr(error, 'problem', None) or error}")
        return
    job = _of_kind(documents, "RayJob")
    if job is not None:
        yield Finding("ok", "kind", "a RayJob for KubeRay")
        yield from look_at_text(text)
        yield from kuberay.look(job, _all_of_kind(documents, "PersistentVolumeClaim"), wanted)
    elif len(documents) == 1 and isinstance(documents[0], dict) and "provider" in documents[0]:
        yield Finding("ok", "kind", "a file for ray up")
        yield from look_at_text(text)
        yield from ray_up.look(documents[0], wanted)
    else:
        raise UserError(f"{path} is of no kind that is known. Give {_KINDS}.")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path} is not a file. Give {_KINDS}; those that come with mft_ray are in cluster/.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text. Give {_KINDS}.") from None


def _first_word(text: str) -> str:
    code = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return code[0].split()[0] if code else ""


def _all_of_kind(documents: Sequence[Any], kind: str) -> list[Any]:
    return [document for document in documents if isinstance(document, dict) and document.get("kind") == kind]


def _of_kind(documents: Sequence[Any], kind: str) -> Any:
    found = _all_of_kind(documents, kind)
    return found[0] if found else None
