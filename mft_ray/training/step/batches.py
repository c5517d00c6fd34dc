"""Which examples each worker sees at each step: the same global batches on any number of workers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

from mft_ray.config import ScalingConfig, TrainConfig
from mft_ray.errors import UserError

# Of a micro-batch at most, by device. More of them fill it no better, and put unlike lengths together.
TOKENS_AT_ONCE = {"cpu": 1024, "cuda": 16384}


def check_batch_size(train: TrainConfig, scaling: ScalingConfig) -> None:
    """Make sure that a global batch divides among workers.

    Raises:
        UserError: it does not.
    """
    if train.batch_size % scaling.workers:
        raise UserError(
            f"batch_size {train.batch_size} does not divide into {scaling.workers} workers. Make it a multiple of "
            f"{scaling.workers}."
        )


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
    indices: Sequence[int], lengths: Sequence[int], tokens: int, rank: int, world: int, packed: bool = False
) -> list[list[int]]:
    """Return one worker's micro-batches of a global batch, filled by tokens; an example of more goes alone.

    What is summed over a global batch may be grouped freely within it, and random micro-batches are a quarter padding:
    examples of like lengths go together. All workers have equally many, and go from large to small: none waits long
    for another, and what is too large for the memory comes first.

    Args:
        indices: examples of the global batch, as many times as there are workers.
        lengths: tokens of every example of the split.
        tokens: of a micro-batch at most, padding included.
        rank: number of the worker.
        world: number of workers.
        packed: whether examples are put one behind the other, and not padded.
    """
    ordered = sorted(indices, key=lambda index: -lengths[index])
    batches = _packed(ordered, lengths, tokens) if packed else _alike(ordered, lengths, tokens)
    while len(batches) % world:
        # By turns, so that the halves take equally long.
        largest = max(
            range(len(batches)), key=lambda place: (len(batches[place]) > 1, _tokens(batches[place], lengths))
        )
        batches[largest : largest + 1] = [batches[largest][::2], batches[largest][1::2]]
    return sorted(batches, key=lambda batch: -_tokens(batch, lengths))[rank::world]


def _alike(ordered: Sequence[int], lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Cut examples, longest first, into batches that are padded to their first one."""
    batches: list[list[int]] = []
    for index in ordered:
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _packed(ordered: Sequence[int], lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Put examples, longest first, each where there is room, and the least of it."""
    batches: list[list[int]] = []
    for index in ordered:
        room = [tokens - _tokens(batch, lengths) - lengths[index] for batch in batches]
        fitting = [place for place, left in enumerate(room) if left >= 0]
        if fitting:
            batches[min(fitting, key=room.__getitem__)].append(index)
        else:
            batches.append([index])
    return batches


def _tokens(batch: Sequence[int], lengths: Sequence[int]) -> int:
    return sum(lengths[index] for index in batch)


@lru_cache(maxsize=2)  # a batch lies in one epoch or two, and many batches in each
def _order(epoch: int, examples: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed((seed << 20) + epoch)
    order: list[int] = torch.randperm(examples, generator=generator).tolist()
    return order
