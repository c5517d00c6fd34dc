"""Every family of decoders that transformers has: what is masked in it, and that a mask does there what it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, Architecture
from tiny_models import bits, copies, logits_of, same, train
from torch import nn
from transformers import AutoModelForCausalLM

from mft_ray.errors import UserError
from mft_ray.masking import Masks, MaskSettings, Target, apply_masks, select


@pytest.fixture(params=ARCHITECTURES, ids=lambda architecture: architecture.kind)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    chosen: Architecture = request.param
    return chosen


def tied(model: Any) -> bool:
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight


@pytest.mark.parametrize("target", ["attn", "mlp", "both"])
def test_exactly_the_projections_are_selected(architecture: Architecture, target: Target) -> None:
    weights = select(architecture.make(), "all", target)
    assert len(weights) == len({weight.name for weight in weights})
    # No router, norm, embedding or head.
    assert {weight.name.removesuffix(".weight") for weight in weights} == architecture.names(target)


def test_a_mask_is_trained_merged_saved_and_loaded(architecture: Architecture, tmp_path: Path) -> None:
    settings = MaskSettings(ratio=0.4)
    masks = Masks(architecture.make(), settings)
    first = copies(masks.masks())
    train(masks, steps=2)
    learned, logits = copies(masks.masks()), logits_of(masks.model)
    for name, mask in learned.items():
        assert not torch.equal(mask, first[name]), name

    applied = apply_masks(architecture.make(), learned)
    assert torch.equal(logits_of(applied), logits)
    assert not torch.equal(logits_of(architecture.make()), logits)

    model: Any = masks.merge()
    assert bits(model) == bits(applied)
    assert torch.equal(logits_of(model), logits)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").eval()
    assert torch.equal(logits_of(loaded), logits)
    assert tied(architecture.make()) == tied(model) == tied(loaded)

    masks.unmerge()
    assert same(masks.masks(), learned)
    assert bits(masks.unload()) == bits(architecture.make())


def test_the_table_has_tied_and_untied_embeddings() -> None:
    assert {tied(architecture.make()) for architecture in ARCHITECTURES[:2]} == {True, False}


class Unheard(nn.Module):
    """An architecture that nobody has named: its layers are stages, its halves mix and lift."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(13, 8)
        self.stages = nn.ModuleList(
            nn.ModuleDict({"mix": nn.Linear(8, 8), "lift": nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))})
            for _ in range(3)
        )
        self.out = nn.Linear(8, 13)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        state = self.tokens(tokens)
        for stage in self.stages:
            state = state + stage["mix"](state).cumsum(dim=1)  # type: ignore[index]
            state = state + stage["lift"](state)  # type: ignore[index]
        result: torch.Tensor = self.out(state)
        return result


def test_an_architecture_nobody_named_is_masked_by_the_names_given() -> None:
    masks = Masks(Unheard(), MaskSettings(ratio=0.4), modules=["stages.1.mix", "stages.2.lift.0", "out"])
    assert list(masks.masks()) == ["stages.1.mix.weight", "stages.2.lift.0.weight", "out.weight"]
    train(masks, steps=2)
    logits = logits_of(masks.model)
    assert torch.equal(logits_of(apply_masks(Unheard(), masks.masks())), logits)
    assert bits(masks.unload()) == bits(Unheard())


def test_an_architecture_nobody_named_has_layers_but_no_halves() -> None:
    names = [f"stages.{layer}.{part}.weight" for layer in (1, 2) for part in ("mix", "lift.0", "lift.2")]
    assert [weight.name for weight in select(Unheard(), "1-2")] == names
    listing = r"target attn\. Give the modules by name; the model has: stages\.\*\.mix, stages\.\*\.lift\.0, .*, out\.$"
    with pytest.raises(UserError, match=listing):
        select(Unheard(), "all", "attn")
