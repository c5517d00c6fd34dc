"""Experiment flatness: the loss around the models that its comparisons have left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import ray
import torch

from mft_ray.config import Config
from mft_ray.data.store import TOKENIZER, open_split
from mft_ray.errors import RunFailed
from mft_ray.evaluation.flatness import flatness
from mft_ray.experiments.catalogue import FFT, Cell
from mft_ray.models.artifacts import load_with
from mft_ray.models.loading import load_tokenizer
from mft_ray.runs.candidates import Candidate, candidate_from
from mft_ray.runs.fft_model import FftModel
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.records import Comparison
from mft_ray.utils.console import log
from mft_ray.utils.files import read_json, write_json
from mft_ray.utils.json_types import JsonObject
from mft_ray.workers.failures import root_cause
from mft_ray.workers.tasks import stream

EXAMPLES = 256  # of validation: curvature costs some fifty passes over them


def surroundings(cells: Sequence[Cell]) -> list[JsonObject]:
    """Measure FFT and every row of each comparison; what was measured before is not measured again.

    Returns:
        For each seed and row the fields of `mft_ray.evaluation.flatness.Flatness`.

    Raises:
        RunFailed: the process that measures failed.
    """
    found = []
    for cell in cells:
        files = {candidate: _file(cell, candidate) for candidate in _candidates(cell)}
        if missing := [candidate for candidate, file in files.items() if not file.exists()]:
            log(f"the loss around {', '.join(candidate.name for candidate in missing)}: {cell.config.run.name}")
            for candidate, content in zip(missing, _measured(missing, cell), strict=True):
                write_json(files[candidate], content)
        for candidate, file in files.items():
            found.append({"seed": cell.seed, "row": candidate.name, **read_json(file, dict)})
    return found


def _file(cell: Cell, candidate: Candidate) -> Path:
    return RunFolder(cell.folder).work / "flatness" / f"{candidate.name}.json"


def _candidates(cell: Cell) -> list[Candidate]:
    folder = RunFolder(cell.folder)
    backbone = Comparison.load(folder.comparison).backbone
    pretrained = FftModel.load(folder.fft_model).pretrained
    rows = [name for name in cell.panel.rows if (folder.methods / name / "outcome.json").exists()]
    return [
        Candidate(FFT, backbone),
        *(candidate_from(folder.methods / name, name, backbone, pretrained) for name in rows),
    ]


def _measured(candidates: list[Candidate], cell: Cell) -> Iterator[JsonObject]:
    home = _file(cell, candidates[0]).parent
    call = (candidates, cell.config, str(RunFolder(cell.folder).data))
    try:
        yield from stream(_measure, [call], [[home]], cell.config.scaling, log)
    except ray.exceptions.RayError as error:
        raise RunFailed(f"measuring the loss around models failed: {root_cause(error)}") from error


def _measure(candidates: list[Candidate], config: Config, data: str) -> Iterator[JsonObject]:
    split = open_split(Path(data), "validation")
    rows = [split[index] for index in range(min(EXAMPLES, len(split)))]
    pad_id = load_tokenizer(str(Path(data) / TOKENIZER)).pad_token_id
    for candidate in candidates:
        model = load_with(candidate.model, candidate.artifact, "float32", pretrained=candidate.pretrained)
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        yield asdict(flatness(model, rows, pad_id=pad_id, batch_size=config.train.eval_batch_size))
