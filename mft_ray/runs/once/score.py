"""One scoring of a model on the data of a configuration, by the same parts as a search."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from mft_ray.config import Config
from mft_ray.errors import RunFailed, UserError
from mft_ray.evaluation.statistics import standard_error
from mft_ray.masking import load_mask
from mft_ray.models.artifacts import load_with
from mft_ray.models.hub import local_artifact
from mft_ray.models.loading import load_skeleton
from mft_ray.models.names import TRACEBACK
from mft_ray.runs.candidates import Candidate
from mft_ray.runs.context import RunContext
from mft_ray.runs.folder import RunFolder, check_place, runs_home
from mft_ray.runs.prepare import (
    prepare_data,
    tokenizer_of,
    with_absolute_paths,
)
from mft_ray.runs.records import SplitScore
from mft_ray.utils.console import log
from mft_ray.utils.files import write_json
from mft_ray.utils.formatting import unit
from mft_ray.workers.capacity import concurrent_trials
from mft_ray.workers.connection import connected
from mft_ray.workers.group import keep_traceback, workers


def score_once(config: Config, model: str | None, mask: str | None, split: str, out: str | None) -> SplitScore:
    """Score one model and print what came out.

    Args:
        config: data, metric and what a worker holds.
        model: folder or hub id; None takes ``model.path``.
        mask: mask file, adapter folder or hub id to put on it.
        split: ``validation`` or ``test``.
        out: where to write per-example scores, if anywhere.

    Returns:
        Mean, number of examples and standard error.

    Raises:
        UserError: something given cannot work.
    """
    config = with_absolute_paths(config.seeded())
    path = model or config.model.path
    if path is None:
        raise UserError("Give --model: the config names no model.path to score.")
    # Everything that can be wrong is found before a Ray starts.
    if out:
        _check_file(Path(out).expanduser().absolute())
    if mask:
        found = local_artifact(mask)
        load_with(path, found, pretrained=config.model.pretrained)
        if Path(found).is_file():
            log(f"{mask}: {load_mask(found)}")
        # Each node fetches what is on the hub: one may not see another's cache.
        mask = str(Path(mask).resolve()) if found == mask else mask
    local = Path(path).expanduser()
    candidate = Candidate(
        "model",
        str(local.resolve()) if local.is_dir() else path,
        mask,
        config.model.pretrained,
    )
    # On a cluster every node must see it, as it does run folders.
    shared = runs_home() if os.environ.get("RAY_ADDRESS") else None
    if shared:
        shared.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=shared, prefix="score-") as scratch:
        folder = RunFolder(Path(scratch))
        folder.work.mkdir()
        prepare_data(config, tokenizer_of(config, path), load_skeleton(path), folder)
        with connected():
            concurrent_trials(config.scaling)
            with workers(config.scaling, folder.work / "group") as group:
                try:
                    values = RunContext(config, folder, path, group).score(candidate, split)
                except RunFailed as failure:
                    # The scores' folder, which has it too, goes away.
                    keep_traceback(failure, Path(out or "score").absolute().with_suffix(f".{TRACEBACK}"))
                    raise
    shown = unit(config.evaluation.metric)
    mean, error = sum(values) / len(values), standard_error(values)
    print(f"{shown.label} on {split}: {shown.score(mean)} ± {shown.score(error)} (n = {len(values):,})", flush=True)
    if out:
        content = {"metric": config.evaluation.metric, "split": split, "n": len(values), "score": mean}
        file = Path(out).expanduser().absolute()
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {**content, "standard_error": error, "values": values})
    return SplitScore.of(values, error)


def _check_file(path: Path) -> None:
    """Refuse a file that could not be written when all is scored."""
    if path.is_dir():
        raise UserError(f"--out is {path}, which is a folder. With --config it is a file, for one score an example.")
    check_place(path.parent, "The folder of --out")
