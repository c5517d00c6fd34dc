"""Per-example scores of a model on one split, by a group of workers and kept in a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mft_ray.config import Config
from mft_ray.errors import RunFailed
from mft_ray.models.artifacts import MODEL, find
from mft_ray.runs.folder import RunFolder
from mft_ray.training.job import GenerateJob, ScoreJob
from mft_ray.utils.files import read_json, write_json
from mft_ray.workers.group import TRACEBACK, WorkerGroup, keep_traceback
from mft_ray.workers.progress import JobProgress


@dataclass(frozen=True)
class Candidate:
    """What is scored.

    Attributes:
        name: of its files among the run's scores.
        model: folder or hub id.
        artifact: mask file or adapter folder to put on it, if any.
        pretrained: model before fine-tuning, for a mask that removes the delta.
    """

    name: str
    model: str
    artifact: str | None = None
    pretrained: str | None = None


def candidate_from(out: Path, name: str, backbone: str, pretrained: str | None) -> Candidate:
    """Return what a run left in its folder: a model of its own, or a mask or an adapter on the backbone.

    Args:
        out: folder of the run.
        name: of its files among the scores.
        backbone: folder or hub id of the model that the run started from.
        pretrained: folder or hub id of the model before fine-tuning, where that is known.
    """
    artifact = find(out)
    assert artifact is not None, f"nothing was kept in {out}"
    if artifact.name == MODEL:
        return Candidate(name, str(artifact))
    return Candidate(name, backbone, str(artifact), pretrained)


def scores_file(folder: RunFolder, subject: Candidate, split: str, metric: str) -> Path:
    """Return where `score` keeps what it found."""
    return folder.scores / f"{subject.name}-{split}-{metric}.json"


def score(
    group: WorkerGroup,
    subject: Candidate,
    split: str,
    config: Config,
    folder: RunFolder,
    metric: str | None = None,
    limit: int | None = None,
) -> list[float]:
    """Score a model on a split; what was scored before is not scored again.

    Args:
        group: does it.
        subject: model and mask.
        split: ``validation`` or ``test``.
        config: evaluation and dtype.
        folder: of the run.
        metric: None takes the config's.
        limit: the first so many examples; None takes all.

    Returns:
        One score per example, in the split's order.

    Raises:
        RunFailed: it failed on every allowed try.
    """
    metric = metric or config.evaluation.metric
    path = scores_file(folder, subject, split, metric)
    if path.exists():
        return read_json(path, lambda content: [float(value) for value in content])
    job = ScoreJob(**_asked(group, subject, split, metric, config, folder), limit=limit)
    label = f"{subject.name} on {split}"
    try:
        values = group.score(job, JobProgress(label, metric, None)).values
    except RunFailed as error:
        folder.scores.mkdir(parents=True, exist_ok=True)
        keep_traceback(error, path.with_suffix(f".{TRACEBACK}"))
        raise error.again(f"Scoring {label} failed: {error}") from error
    folder.scores.mkdir(parents=True, exist_ok=True)
    write_json(path, values)
    return values


def answer(
    group: WorkerGroup, subject: Candidate, split: str, examples: Sequence[int], config: Config, folder: RunFolder
) -> list[str]:
    """Generate a model's answers to some examples of a split, greedily.

    Args:
        group: does it.
        subject: model and mask.
        split: ``validation`` or ``test``.
        examples: their places in the split.
        config: evaluation and dtype.
        folder: of the run.

    Raises:
        RunFailed: it failed on every allowed try.
    """
    asked = _asked(group, subject, split, config.evaluation.metric, config, folder)
    return group.answer(GenerateJob(**asked, examples=tuple(examples))) if examples else []


def _asked(
    group: WorkerGroup, subject: Candidate, split: str, metric: str, config: Config, folder: RunFolder
) -> dict[str, Any]:
    """What every job says that only looks at a model."""
    return {
        "model": subject.model,
        "data": str(folder.data),
        "split": split,
        "metric": metric,
        "evaluation": config.evaluation,
        "scaling": group.scaling,
        "batch_size": config.train.eval_batch_size,
        "artifact": subject.artifact,
        "pretrained": subject.pretrained,
        "dtype": config.model.dtype,
        "attention": config.model.attention,
    }


def score_on_test(
    group: WorkerGroup, subjects: Sequence[Candidate], config: Config, folder: RunFolder
) -> dict[str, dict[str, list[float]]]:
    """Score models on the test examples by the metric that decides and then by the extra ones.

    Args:
        group: does it.
        subjects: models, told apart by name.
        config: ``evaluation`` names the metrics.
        folder: of the run.

    Returns:
        By metric, then by name, one score per example.
    """
    evaluation = config.evaluation
    limits: dict[str, int | None] = {evaluation.metric: None}
    limits |= {name: evaluation.extra_n for name in evaluation.extra if name != evaluation.metric}
    return {
        metric: {subject.name: score(group, subject, "test", config, folder, metric, limit) for subject in subjects}
        for metric, limit in limits.items()
    }
