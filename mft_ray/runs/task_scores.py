"""Benchmark tasks on several models at once, each in a process of its own somewhere on the cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import ray

from mft_ray.config import Config, ScalingConfig
from mft_ray.data.store import TOKENIZER
from mft_ray.errors import RunFailed, UserError
from mft_ray.evaluation.benchmark import benchmark, load_tasks, one_each, texts_file
from mft_ray.evaluation.loaded_model import Backbone
from mft_ray.models.loading import load_tokenizer
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.scores import Candidate
from mft_ray.utils.console import log
from mft_ray.utils.files import read_json
from mft_ray.workers.failures import root_cause
from mft_ray.workers.group import TRACEBACK, keep_traceback
from mft_ray.workers.tasks import stream


def score_on_tasks(
    subjects: Sequence[Candidate], config: Config, folder: RunFolder, scaling: ScalingConfig, at_once: int
) -> dict[tuple[str, str], dict[str, list[float]]]:
    """Evaluate models on the configuration's tasks; what was generated before is not generated again.

    Args:
        subjects: what to evaluate; their names tell them apart.
        config: names the tasks.
        folder: of the run: prompts, texts and scores go there, and what is there is continued.
        scaling: each process asks for what one worker does.
        at_once: processes at the most.

    Returns:
        By task and the metric that it is known by, then by subject, one score per example.

    Raises:
        RunFailed: a process failed on every allowed try.
    """
    out = folder.tasks
    shares = [list(subjects[first::at_once]) for first in range(min(at_once, len(subjects)))]
    calls = [(share, config, str(out), str(folder.data / TOKENIZER)) for share in shares]
    try:
        for line in stream(_evaluate, calls, [[out / each.name for each in share] for share in shares], scaling, log):
            log(line)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        failed = RunFailed(f"benchmark tasks failed: {root_cause(error.cause)}")
        failed.traceback = str(error)
        keep_traceback(failed, out / TRACEBACK)
        raise failed from error
    except ray.exceptions.RayError as error:
        raise RunFailed(f"benchmark tasks failed: {root_cause(error)}") from error
    first = read_json(out / subjects[0].name / "results.json", dict)
    metrics = {task: results[subjects[0].name]["metric"] for task, results in first.items()}
    return {
        (task, metric): {subject.name: _example_scores(out, subject.name, task, metric) for subject in subjects}
        for task, metric in metrics.items()
    }


def _example_scores(out: Path, subject: str, task: str, metric: str) -> list[float]:
    """Return a metric of every example, in order."""
    lines = texts_file(out / subject, task, subject).read_text(encoding="utf-8").splitlines()
    return one_each([json.loads(line)["scores"] for line in lines[1:]], metric)


def _evaluate(subjects: list[Candidate], config: Config, out: str, tokenizer: str) -> Iterator[str]:
    """Evaluate some models after one another; the tasks, and a backbone that the next one shares, stay in memory."""
    backbone: Backbone | None = None
    prompting = load_tokenizer(tokenizer)
    tasks = load_tasks(config.tasks, config.evaluation, prompting)
    for subject in subjects:
        if backbone is None or backbone.path != subject.model:
            backbone = Backbone(subject.model, config.model.dtype, subject.pretrained, tokenizer=prompting)
        judged = backbone.having(subject.artifact, subject.name) if subject.artifact else backbone.itself(subject.name)
        yield from benchmark(backbone, [judged], tasks, Path(out) / subject.name, config.evaluation.task_batch_size)
