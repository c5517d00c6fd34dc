"""Benchmark tasks on several models, by all processes that the cluster has a place for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import ray

from mft_ray.config import Config
from mft_ray.data.store import TOKENIZER
from mft_ray.errors import RunFailed, UserError
from mft_ray.evaluation.benchmark import (
    RESULTS,
    answer_share,
    benchmark,
    load_tasks,
    one_each,
    share_folder,
    texts_file,
)
from mft_ray.evaluation.loaded_model import Backbone
from mft_ray.models.loading import load_tokenizer
from mft_ray.models.names import TRACEBACK
from mft_ray.runs.candidates import Candidate
from mft_ray.runs.session import Session
from mft_ray.utils.console import log
from mft_ray.utils.files import read_json
from mft_ray.workers.failures import root_cause
from mft_ray.workers.group import keep_traceback
from mft_ray.workers.tasks import stream


def score_on_tasks(session: Session, candidates: Sequence[Candidate]) -> dict[tuple[str, str], dict[str, list[float]]]:
    """Evaluate models on the configuration's tasks; what was generated before is not generated again.

    Where there are more places than models, several processes share a model's prompts: each text is kept as soon as its
    batch is done, so that a process that dies costs what it has not answered.

    Args:
        session: run whose configuration names the tasks, and in whose folder prompts, texts and scores are kept; what
            is there is continued. Each process asks for what one of the run's workers does.
        candidates: models, told apart by name.

    Returns:
        By task and the metric that it is known by, then by model, one score per example.

    Raises:
        RunFailed: a process failed on every allowed try.
    """
    config, out, at_once = session.config, session.folder.tasks, session.concurrent
    common = (config, str(out), str(session.folder.data / TOKENIZER))
    processes = max(1, at_once // len(candidates))
    among = [list(candidates[first::at_once]) for first in range(min(at_once, len(candidates)))]
    try:
        if processes > 1:
            parts = [(each, share) for each in candidates for share in range(processes)]
            homes = [[share_folder(out / each.name, share)] for each, share in parts]
            asked = [([each], *common, (share, processes)) for each, share in parts]
            for line in stream(_evaluate, asked, homes, config.scaling, log):
                log(line)
        homes = [[out / one.name for one in each] for each in among]
        for line in stream(_evaluate, [(each, *common, None) for each in among], homes, config.scaling, log):
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
    first = read_json(out / candidates[0].name / RESULTS, dict)
    metrics = {task: results[candidates[0].name]["metric"] for task, results in first.items()}
    return {
        (task, metric): {each.name: _example_scores(out, each.name, task, metric) for each in candidates}
        for task, metric in metrics.items()
    }


def _example_scores(out: Path, candidate: str, task: str, metric: str) -> list[float]:
    """Return a metric of every example, in order."""
    lines = texts_file(out / candidate, task, candidate).read_text(encoding="utf-8").splitlines()
    return one_each([json.loads(line)["scores"] for line in lines[1:]], metric)


def _evaluate(
    candidates: list[Candidate], config: Config, out: str, tokenizer: str, share: tuple[int, int] | None
) -> Iterator[str]:
    """Evaluate some models after one another; the tasks, and a backbone that the next one shares, stay in memory.

    With a share (its number, and how many there are) texts are only generated, and only those of the share.
    """
    backbone: Backbone | None = None
    prompting = load_tokenizer(tokenizer)
    tasks = load_tasks(config.tasks, config.evaluation, prompting)
    for candidate in candidates:
        if backbone is None or backbone.path != candidate.model:
            backbone = Backbone(candidate.model, config.model.dtype, candidate.pretrained, tokenizer=prompting)
        name, artifact = candidate.name, candidate.artifact
        judged = backbone.having(artifact, name) if artifact else backbone.itself(name)
        size = config.evaluation.task_batch_size
        if share:
            yield from answer_share(backbone, judged, tasks, Path(out) / name, size, *share)
        else:
            yield from benchmark(backbone, [judged], tasks, Path(out) / name, size)
