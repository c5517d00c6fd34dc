import pytest
import torch

from mft_ray.data.collate import collate, collate_prompts

ROWS = [
    {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "prompt_ids": [5]},
    {"input_ids": [8, 0], "labels": [-100, 0], "prompt_ids": [8, 9]},
]


def test_padding_on_the_right() -> None:
    batch = collate(ROWS, pad_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    # A real token that equals the pad token is attended to and learnt; padding is neither.
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [-100, 0, -100]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_padding_on_the_left() -> None:
    batch = collate(ROWS, pad_id=1, side="left")
    assert batch["input_ids"].tolist() == [[5, 6, 7], [1, 8, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 1, 1]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [-100, -100, 0]]


def test_prompts_end_together() -> None:
    batch = collate_prompts(ROWS, pad_id=0)
    assert batch["input_ids"].tolist() == [[0, 5], [8, 9]]
    assert batch["attention_mask"].tolist() == [[0, 1], [1, 1]]
    assert set(batch) == {"input_ids", "attention_mask"}


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        collate([], pad_id=0)
