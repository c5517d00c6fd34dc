"""One score per example, computed by all workers of a group together."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from mft_ray.config import EvaluationConfig, Metric, ScalingConfig
from mft_ray.data.store import TOKENIZER
from mft_ray.evaluation.example_scores import ExampleScores
from mft_ray.evaluation.generation import generate
from mft_ray.evaluation.metrics import Around, per_example
from mft_ray.models.names import SCORES, find
from mft_ray.training.cache import WorkerCache
from mft_ray.training.compute import autocast_dtype, settled
from mft_ray.training.footprint import Sized, scoring_sizes
from mft_ray.training.heartbeat import Alive, unheard
from mft_ray.training.job import Counted, GenerateJob, Outcome, ScoreJob, Scores, Sizes, Texts, TrainJob

T = TypeVar("T")

_TELL_EVERY_S = 10.0
_SCORES = "scores examples"


def score(
    job: ScoreJob,
    cache: WorkerCache,
    tell: Callable[[Counted], object],
    limit: Sizes | None = None,
    sized: Sized | None = None,
    alive: Alive = unheard,
) -> Scores:
    """Score a model on a split.

    Args:
        job: what to score.
        cache: what this worker has from the last job. torch.distributed must be initialised.
        tell: told now and then, on the first worker, how far it is.
        limit: examples at once, at most, where more have been too many for the memory.
        sized: told, on every worker, how many it is going to be.
        alive: told, on every worker, what is done next.
    """
    told = time.monotonic()
    note = ""

    def count(done: int, total: int) -> None:
        nonlocal told, note
        alive(_SCORES)
        if dist.get_rank() == 0 and time.monotonic() - told > _TELL_EVERY_S:
            told = time.monotonic()
            tell(Counted(done, total, note))
            note = ""

    alive("loads model and data")
    model, split = cache.finished_model(job), cache.split(job.data, job.split)
    sizes, note = scoring_sizes(model, job, split.lengths[: job.limit], cache.device, limit)
    scaling, _ = settled(job.scaling, cache.device)
    if sized:
        sized(sizes)
    alive(_SCORES)
    values = score_together(
        model,
        split.rows[: job.limit],
        job.metric,
        job.evaluation,
        scaling,
        # Not the model's: what is judged is prompted by the data's chat template, and ends answers as that does.
        cache.tokenizer(str(Path(job.data) / TOKENIZER)),
        (sizes.scoring, job.batch_size),
        cache.device,
        count,
    )
    return Scores(values)


def score_whole(
    outcome: Outcome, job: TrainJob, cache: WorkerCache, limit: Sizes | None = None, alive: Alive = unheard
) -> None:
    """Score the best state of a run on its checkpoint as it is, where weights were held in fewer bits meanwhile.

    Args:
        outcome: of the run; it gets the scores.
        job: what was trained; its artifact is in its folder.
        cache: what this worker has.
        limit: same as in `score`.
        alive: same as in `score`.
    """
    evaluation, artifact = job.evaluation, find(Path(job.out))
    assert artifact is not None

    def scored(metric: Metric) -> list[float]:
        its = ScoreJob(
            model=job.model,
            data=job.data,
            split="validation",
            metric=metric,
            evaluation=evaluation,
            scaling=job.scaling,
            batch_size=job.train.eval_batch_size,
            artifact=str(artifact),
            pretrained=job.pretrained,
            dtype=job.dtype,
            attention=job.attention,
        )
        return score(its, cache, lambda _: None, limit, alive=alive).values

    values = scored(evaluation.monitor)
    outcome.whole = sum(values) / len(values)
    if evaluation.metric != evaluation.monitor:
        if not outcome.decided(job):
            return
        values = scored(evaluation.metric)
    outcome.score = sum(values) / len(values)
    keep_scores(job, evaluation.metric, values)


def keep_scores(job: TrainJob, metric: Metric, values: Sequence[float]) -> None:
    """Keep the scores of single examples of a trial, which other trials are held against.

    Args:
        job: the trial's.
        metric: metric of the scores.
        values: one for each example of the validation split.
    """
    # What is not scored here by the metric that decides is scored afterwards, and kept then.
    if dist.get_rank() == 0 and job.decides and job.reference_scores is not None:
        ExampleScores.of(metric, values).save(Path(job.out) / SCORES)


def score_together(
    model: nn.Module,
    rows: Sequence[Mapping[str, Any]],
    metric: str,
    evaluation: EvaluationConfig,
    scaling: ScalingConfig,
    tokenizer: Any,
    examples: tuple[int, int],
    device: torch.device,
    progress: Callable[[int, int], object] | None = None,
    around: Around | None = None,
) -> list[float]:
    """Return the metric of every row, in order, alike on all workers. Each scores a share.

    Args:
        model: on the device.
        rows: as `per_example` takes them, the same on all workers.
        metric: one of `mft_ray.evaluation.metrics`.
        evaluation: ``max_new_tokens`` is used.
        scaling: ``compute`` is used, and is not ``auto``.
        tokenizer: the model's.
        examples: per forward and worker: of the greatest length, and at most.
        device: device of this worker.
        progress: called with the examples done and in all, of this worker's share.
        around: context manager for forwards, as of `per_example`.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    values = per_example(
        model,
        rows[rank::world],
        metric,
        pad_id=tokenizer.pad_token_id,
        eos_id=tokenizer.eos_token_id,
        batch_size=examples[0],
        most=examples[1],
        device=device,
        tokenizer=tokenizer,
        max_new_tokens=evaluation.max_new_tokens,
        autocast=autocast_dtype(scaling),
        progress=progress,
        around=around,
    )
    return _gathered(values, len(rows))


def answer(
    job: GenerateJob,
    cache: WorkerCache,
    limit: Sizes | None = None,
    sized: Sized | None = None,
    alive: Alive = unheard,
) -> Texts:
    """Generate answers to some examples. Arguments as of `score`."""
    alive("loads model and data")
    model, rows = cache.finished_model(job), cache.split(job.data, job.split).rows
    prompts = [list(rows[index]["prompt_ids"]) for index in job.examples]
    sizes, _ = scoring_sizes(model, job, [len(prompt) for prompt in prompts], cache.device, limit)
    if sized:
        sized(sizes)
    rank, world = dist.get_rank(), dist.get_world_size()
    positions = getattr(model.config, "max_position_embeddings", None)
    room = positions - max(map(len, prompts)) if positions else job.evaluation.max_new_tokens
    made = generate(
        model.eval(),
        cache.tokenizer(str(Path(job.data) / TOKENIZER)),
        prompts[rank::world],
        max_new_tokens=max(1, min(job.evaluation.max_new_tokens, room)),
        batch_size=sizes.scoring,
        autocast=autocast_dtype(settled(job.scaling, cache.device)[0]),
    )
    texts = {}
    alive("generates")
    for index, generated in made:
        texts[index] = generated.text
        alive("generates")
    return Texts(_gathered([texts[index] for index in range(len(texts))], len(prompts)))


def _gathered(mine: list[T], count: int) -> list[T]:
    """Put together what every worker has of its share: the first has items 0, n, 2n and so on of n workers."""
    world = dist.get_world_size()
    if world == 1:
        return mine
    shares: list[list[T]] = [[] for _ in range(world)]
    dist.all_gather_object(shares, mine)
    return [shares[index % world][index // world] for index in range(count)]
