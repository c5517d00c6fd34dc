from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mft_ray.config import ScalingConfig, TrainConfig
from mft_ray.errors import UserError
from mft_ray.training.step.batches import check_batch_size, global_batch, micro_batches


@settings(deadline=None)
@given(
    workers=st.sampled_from([1, 2, 4]),
    share=st.integers(1, 5),
    examples=st.integers(1, 50),
    step=st.integers(0, 40),
    seed=st.integers(0, 5),
)
def test_workers_share_the_same_global_batch(workers: int, share: int, examples: int, step: int, seed: int) -> None:
    whole = global_batch(step, 4 * share, examples, seed)
    parts = [whole[rank::workers] for rank in range(workers)]
    assert {len(part) for part in parts} == {4 * share // workers}
    assert Counter(chain(*parts)) == Counter(whole)


@settings(deadline=None)
@given(batch=st.integers(1, 30), examples=st.integers(1, 40), seed=st.integers(0, 3))
def test_every_epoch_has_every_example_once(batch: int, examples: int, seed: int) -> None:
    epochs = 3
    steps = -(-epochs * examples // batch)
    order = list(chain(*(global_batch(step, batch, examples, seed) for step in range(steps))))
    for epoch in range(epochs):
        assert sorted(order[epoch * examples : (epoch + 1) * examples]) == list(range(examples))


def test_a_batch_depends_on_nothing_but_step_and_seed() -> None:
    assert global_batch(7, 16, 60, 0) == global_batch(7, 16, 60, 0)
    orders = [tuple(global_batch(0, 60, 60, seed)) for seed in range(4)] + [tuple(global_batch(1, 60, 60, 0))]
    assert len(set(orders)) == 5


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=24, max_size=24),
    tokens=st.integers(1, 400),
    world=st.sampled_from([1, 2, 3, 4, 8]),
    packed=st.booleans(),
)
def test_micro_batches_share_a_batch_out(lengths: list[int], tokens: int, world: int, packed: bool) -> None:
    whole = list(range(24))
    shares = [micro_batches(whole, lengths, tokens, rank, world, packed) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1  # all workers in step
    assert sorted(chain(*chain(*shares))) == whole
    for batch in chain(*shares):
        taken = [lengths[index] for index in batch]
        assert batch
        assert len(batch) == 1 or (sum(taken) if packed else max(taken) * len(taken)) <= tokens


def test_examples_of_like_lengths_go_together() -> None:
    lengths = [5, 90, 6, 80, 7, 85]
    assert micro_batches([0, 1, 2, 3, 4, 5], lengths, 270, 0, 1) == [[1, 5, 3], [4, 2, 0]]
    assert micro_batches([0, 1, 2, 3, 4, 5], lengths, 1000, 0, 2) == [[1, 3, 2]]
    assert micro_batches([0, 1, 2, 3, 4, 5], lengths, 1000, 1, 2) == [[5, 4, 0]]
    assert micro_batches([0, 1, 2, 3, 4, 5], lengths, 100, 0, 1, packed=True) == [[1, 4], [5, 2, 0], [3]]


def test_filling_by_tokens_leaves_little_padding() -> None:
    """Lengths like those of instructions: median 350, sigma 0.7. Random micro-batches of 4 are two fifths padding."""
    generator = torch.Generator().manual_seed(0)
    lengths = (350 * torch.exp(0.7 * torch.randn(1280, generator=generator))).long().clamp(8, 2048).tolist()

    def padding(batches: list[list[int]]) -> float:
        places = sum(max(lengths[index] for index in batch) * len(batch) for batch in batches)
        return 1 - sum(lengths[index] for batch in batches for index in batch) / places

    steps = [global_batch(step, 32, len(lengths), 0) for step in range(40)]
    at_random = padding([step[start : start + 4] for step in steps for start in range(0, 32, 4)])
    by_tokens = padding([batch for step in steps for batch in micro_batches(step, lengths, 2048, 0, 1)])
    assert at_random > 0.35
    assert by_tokens < 0.14


def test_a_batch_that_does_not_divide_is_refused() -> None:
    check_batch_size(TrainConfig(batch_size=6), ScalingConfig(workers=3))
    with pytest.raises(UserError, match=r"batch_size 16 .* 3 workers.* multiple of 3\."):
        check_batch_size(TrainConfig(batch_size=16), ScalingConfig(workers=3))
