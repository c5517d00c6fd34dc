"""Per-example scores of a model, with or without a mask, computed on the cluster and kept."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from mft_ray.config import Config
from mft_ray.data.prepare import open_split
from mft_ray.evaluation.metrics import per_example
from mft_ray.masking import load_mask
from mft_ray.search.folder import RunFolder
from mft_ray.training.backbone import DTYPES, load_model, load_tokenizer
from mft_ray.training.export import load_masked
from mft_ray.training.group import worker_environment, worker_resources
from mft_ray.training.job import write_json


@dataclass(frozen=True)
class Subject:
    """What is scored.

    Attributes:
        name: of its files among the run's scores.
        model: folder or hub id.
        mask: mask file to apply to it, if any.
        before: model before fine-tuning, for a mask that removes the delta.
    """

    name: str
    model: str
    mask: str | None = None
    before: str | None = None


class Pending:
    """Scores being computed.

    Args:
        path: where they are kept.
        reference: to the remote task; None if they are there already.
    """

    def __init__(self, path: Path, reference: Any) -> None:
        self.path, self._reference = path, reference

    def values(self) -> list[float]:
        """Wait for the scores and return them, one per example, in the split's order."""
        if self._reference is not None:
            write_json(self.path, ray.get(self._reference))
        values: list[float] = json.loads(self.path.read_text())
        return values


def score(
    subject: Subject,
    split: str,
    config: Config,
    folder: RunFolder,
    metric: str | None = None,
    limit: int | None = None,
) -> Pending:
    """Start scoring a model on a split; what was scored before is not scored again.

    Args:
        subject: model and mask.
        split: ``validation`` or ``test``.
        config: evaluation, dtype and what a worker holds.
        folder: of the run.
        metric: None takes the config's.
        limit: the first so many examples; None takes all.
    """
    metric = metric or config.evaluation.metric
    folder.scores.mkdir(parents=True, exist_ok=True)
    path = folder.scores / f"{subject.name}-{split}-{metric}.json"
    if path.exists():
        return Pending(path, None)
    resources = worker_resources(config.scaling)
    task = ray.remote(_score).options(
        num_cpus=resources["CPU"],
        num_gpus=resources.get("GPU", 0),
        runtime_env={"env_vars": worker_environment()},
    )
    rows = list(open_split(folder.data, split))[:limit]
    return Pending(path, task.remote(subject, rows, config, metric))


def _score(subject: Subject, rows: list[dict[str, Any]], config: Config, metric: str) -> list[float]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = (config.model.dtype, config.model.attention)
    if subject.mask:
        model = load_masked(subject.model, load_mask(subject.mask), *settings, before=subject.before)
    else:
        model = load_model(subject.model, *settings)
    tokenizer = load_tokenizer(subject.model)
    return per_example(
        model.to(device),
        rows,
        metric,
        pad_id=tokenizer.pad_token_id,
        eos_id=tokenizer.eos_token_id,
        batch_size=config.train.eval_batch_size,
        device=device,
        tokenizer=tokenizer,
        max_new_tokens=config.evaluation.max_new_tokens,
        autocast=DTYPES["bfloat16"] if config.scaling.compute == "bfloat16" else None,
    )
