"""The verdict on real models: no where there is nothing to find, yes where there is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from mft_ray.data import arithmetic
from mft_ray.data.collate import collate
from mft_ray.data.encoding import IGNORED, Row, encode
from mft_ray.evaluation.metrics import per_example
from mft_ray.masking import Masks, MaskSettings, apply_masks, keep_mask, select
from mft_ray.models.loading import new_model
from mft_ray.verdict.decision import Evidence, Rules, judge

pytestmark = pytest.mark.slow

DAMAGED = 0.08  # of every matrix
TOKENIZER = arithmetic.tokenizer()


@dataclass
class Models:
    """A model that has learned two-digit arithmetic, and what was done to a copy of it.

    Attributes:
        fft: the good model.
        damaged: its copy with the smallest weights of every matrix overwritten by large noise.
        undo: the masks that remove exactly the noise.
        rows: the splits; the test split was never trained on.
    """

    fft: nn.Module
    damaged: nn.Module
    undo: dict[str, torch.Tensor]
    rows: dict[str, list[Row]]


def _train(
    model: nn.Module,
    parameters: list[nn.Parameter],
    rows: list[Row],
    steps: int,
    lr: float,
    after_step: Callable[[float], None] = lambda progress: None,
) -> None:
    batch = collate(rows, TOKENIZER.pad_token_id)
    optimizer = torch.optim.AdamW(parameters, lr, weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(1)
    for step in range(1, steps + 1):
        some = torch.randint(len(rows), (256,), generator=generator)
        logits = model(batch["input_ids"][some], attention_mask=batch["attention_mask"][some], use_cache=False).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][some, 1:].flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        after_step(step / steps)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Matrices this small gain little from threads, and lose much where the cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models() -> Models:
    splits = arithmetic.generate(2, n_train=9000, n_validation=2, n_test=3000, seed=0)
    rows = {split: encode(examples, TOKENIZER, 32) for split, examples in splits.items()}
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    fft = new_model({"model_type": "llama", "max_position_embeddings": 32, **size}, len(TOKENIZER), seed=0)
    _train(fft, list(fft.parameters()), rows["train"], steps=500, lr=5e-3)
    damaged, undo = copy.deepcopy(fft), {}
    generator = torch.Generator().manual_seed(0)
    for name in (selected.name for selected in select(damaged)):
        weight = damaged.get_parameter(name)
        undo[name] = keep = keep_mask(weight, DAMAGED)
        noise = torch.randn(weight.shape, generator=generator) * 5 * weight.detach().std()
        with torch.no_grad():
            weight.copy_(torch.where(keep, weight, noise))
    return Models(fft, damaged, undo, rows)


def _scores(models: Models, model: nn.Module) -> list[float]:
    return per_example(
        model,
        models.rows["test"],
        "exact_match",
        pad_id=TOKENIZER.pad_token_id,
        eos_id=TOKENIZER.eos_token_id,
        batch_size=500,
        device="cpu",
    )


def _verdict(models: Models, backbone: nn.Module, mft: nn.Module) -> dict[str, Any]:
    """The verdict on a masked model against the model that its mask is for."""
    evidence = Evidence("exact_match", _scores(models, mft), _scores(models, backbone))
    return judge(evidence, Rules(resamples=2000)).content()


def test_the_model_is_good_and_the_damage_is_real(models):
    fft = _scores(models, models.fft)
    damaged = _scores(models, models.damaged)
    assert len(fft) == 3000
    assert sum(fft) / len(fft) > 0.25
    assert sum(damaged) / len(damaged) < 0.5 * sum(fft) / len(fft)


def test_no_when_the_mask_is_the_fft_model_itself(models):
    everything = {name: torch.ones_like(mask) for name, mask in models.undo.items()}
    verdict = _verdict(models, models.fft, apply_masks(copy.deepcopy(models.fft), everything))
    assert verdict["beats_fft"] is False
    assert verdict["delta"] == 0
    assert verdict["sentence"].startswith("No: ")
    assert "no gain over FFT beyond chance" in verdict["sentence"]


def test_no_and_worse_when_the_mask_is_a_random_half(models):
    # Normal scores before any training: what the paper's preset starts from.
    masks = Masks(copy.deepcopy(models.fft), MaskSettings(ratio=0.5, init="normal"), seed=3)
    verdict = _verdict(models, models.fft, masks.merge())
    assert verdict["beats_fft"] is False
    assert verdict["ci95"][1] < 0
    assert "the mask is worse than FFT" in verdict["sentence"]


def test_yes_when_the_mask_undoes_the_damage(models):
    verdict = _verdict(models, models.damaged, apply_masks(copy.deepcopy(models.damaged), models.undo))
    assert verdict["beats_fft"] is True
    assert verdict["ci95"][0] > 0.1
    assert verdict["p_value"] < 1e-6
    assert verdict["sentence"].startswith("Yes: ")


def test_yes_when_a_mask_is_learned_against_the_damage(models):
    model = copy.deepcopy(models.damaged)
    masks = Masks(model, MaskSettings(ratio=DAMAGED, init="magnitude", schedule="anneal"))
    masks.update(0.0)
    _train(model, masks.scores(), models.rows["train"], steps=100, lr=3e-3, after_step=masks.update)
    assert masks.at_full_ratio
    verdict = _verdict(models, models.damaged, masks.merge())
    assert verdict["beats_fft"] is True
    assert verdict["ci95"][0] > 0.02
    assert verdict["sentence"].startswith("Yes: ")
