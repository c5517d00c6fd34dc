"""Which examples each worker sees at each step: the same global batches on any number of workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from mft_ray.config import ScalingConfig, TrainConfig
from mft_ray.errors import UserError


def micro_batch_size(train: TrainConfig, scaling: ScalingConfig) -> int:
    """Return the examples per forward per worker that a configuration asks for, at most: memory may allow fewer.

    Raises:
        UserError: the batch does not divide among workers and micro-batches.
    """
    share, rest = divmod(train.batch_size, scaling.workers)
    size = train.micro_batch_size or share
    if rest or not size or share % size:
        raise UserError(
            f"batch_size {train.batch_size} does not divide into {scaling.workers} workers x micro-batches of "
            f"{train.micro_batch_size or 'any size'}. Make batch_size a multiple of "
            f"{scaling.workers * (train.micro_batch_size or 1)}."
        )
    return size


def largest_divisor(share: int, most: float) -> int:
    """Return the largest micro-batch, of at most so many examples, that a worker's share of a batch divides into.

    Args:
        share: examples of a global batch that each worker has.
        most: what there is room for; less than 1 counts as 1.
    """
    return max(size for size in range(1, share + 1) if share % size == 0 and (size <= most or size == 1))


def global_batch(step: int, batch_size: int, examples: int, seed: int) -> list[int]:
    """Return the indices of one optimizer step's examples.

    Epochs are seeded permutations laid end to end, so that a step's batch depends on nothing but its
    number: resuming and changing the number of workers change nothing.

    Args:
        step: counted from 0.
        batch_size: examples per step over all workers.
        examples: size of the training split.
        seed: seed of the permutations.
    """
    positions = range(step * batch_size, (step + 1) * batch_size)
    orders = {epoch: _order(epoch, examples, seed) for epoch in {position // examples for position in positions}}
    return [orders[position // examples][position % examples] for position in positions]


def micro_batches(
    indices: Sequence[int], lengths: Sequence[int], micro: int, rank: int, world: int
) -> Iterator[list[int]]:
    """Yield one worker's micro-batches of a global batch, examples of like lengths together.

    What is summed over a global batch may be grouped freely within it; random micro-batches are a quarter padding.
    All workers go from long to short: none waits long for another, and a batch that is too large for the memory comes
    first.

    Args:
        indices: examples of the global batch.
        lengths: tokens of every example of the split.
        micro: examples in a micro-batch, which divides each worker's share.
        rank: number of the worker.
        world: number of workers.
    """
    ordered = sorted(indices, key=lambda index: -lengths[index])
    for start in range(rank * micro, len(ordered), world * micro):
        yield ordered[start : start + micro]


def _order(epoch: int, examples: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed((seed << 20) + epoch)
    order: list[int] = torch.randperm(examples, generator=generator).tolist()
    return order
