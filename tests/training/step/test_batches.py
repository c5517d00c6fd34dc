from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mft_ray.config import ScalingConfig, TrainConfig
from mft_ray.errors import UserError
from mft_ray.training.step.batches import global_batch, micro_batch_size


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


@pytest.mark.parametrize(
    ("batch", "workers", "micro", "size"), [(32, 1, None, 32), (32, 2, None, 16), (32, 2, 4, 4), (6, 3, 2, 2)]
)
def test_micro_batch_size(batch: int, workers: int, micro: int | None, size: int) -> None:
    train = TrainConfig(batch_size=batch, micro_batch_size=micro)
    assert micro_batch_size(train, ScalingConfig(workers=workers)) == size


@pytest.mark.parametrize(
    ("batch", "workers", "micro", "multiple"), [(16, 3, None, 3), (1, 2, None, 2), (16, 2, 3, 6), (4, 1, 8, 8)]
)
def test_a_batch_that_does_not_divide_is_refused(batch: int, workers: int, micro: int | None, multiple: int) -> None:
    train = TrainConfig(batch_size=batch, micro_batch_size=micro)
    with pytest.raises(UserError, match=rf"batch_size {batch} .* {workers} workers .* multiple of {multiple}\."):
        micro_batch_size(train, ScalingConfig(workers=workers))
