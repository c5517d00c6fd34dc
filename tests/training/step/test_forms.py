"""Micro-batches without padding or mask: the same logits and gradients as example by example, for every decoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, Architecture
from torch import Tensor

from mft_ray.masking import Masks, MaskSettings
from mft_ray.training.step.answer_loss import AnswerLoss
from mft_ray.training.step.forms import Form, arranged, chosen

Row = dict[str, list[int]]
CPU = torch.device("cpu")
ROWS: list[Row] = [
    {"input_ids": [3, 4, 5, 6, 7, 8], "labels": [-100, -100, 5, 6, 7, 8]},
    {"input_ids": [9, 10, 11, 12], "labels": [9, 10, -100, 12]},  # its first token is no answer to what lies before
    {"input_ids": [4, 4, 9, 2, 3], "labels": [-100, 4, 9, 2, 3]},
]


# BLOOM knows no positions; OPT and gpt-oss make their mask without them, so that one example would see the other.
UNPACKABLE = {"bloom", "opt", "gpt_oss"}


def losses(model: Any, masks: Masks, batches: list[list[Row]], form: Form) -> tuple[float, list[Tensor]]:
    """The summed loss of some batches, and the gradients of all scores."""
    loss, total = AnswerLoss(model), 0.0
    for score in masks.scores():
        score.grad = None
    for rows in batches:
        nll = loss(model, *arranged(rows, 0, form))
        nll.backward()
        total += nll.item()
    return total, [score.grad.clone() for score in masks.scores() if score.grad is not None]


def choice(model: Any, packing: bool | None = True) -> tuple[Form, str]:
    with torch.no_grad():
        return chosen(model, ROWS, 0, CPU, packing, lambda inputs: model(**inputs, use_cache=False).logits)


@pytest.mark.parametrize("form", [Form.PACKED, Form.PADDED])
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda each: each.kind)
def test_a_form_changes_nothing(architecture: Architecture, form: Form) -> None:
    model = architecture.make()
    if form == Form.PACKED and architecture.kind in UNPACKABLE:
        assert choice(model)[0] == Form.PADDED
        return
    assert choice(model, packing=form == Form.PACKED) == (form, "")
    masks = Masks(model, MaskSettings(ratio=0.3))
    expected, theirs = losses(model, masks, [[row] for row in ROWS], Form.MASKED)
    found, mine = losses(model, masks, [ROWS], form)
    assert found == pytest.approx(expected, rel=1e-5)
    for gradient, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-5)


def test_packing_pays_where_attention_computes_nothing_between_examples() -> None:
    model = ARCHITECTURES[0].make()
    assert choice(model, None) == (Form.PADDED, "")
    model.config._attn_implementation_internal = "flash_attention_2"
    taken: list[set[str]] = []

    def forward(inputs: dict[str, Tensor]) -> Tensor:
        taken.append(set(inputs))
        model.config._attn_implementation_internal = "sdpa"
        logits: Tensor = model(**inputs, use_cache=False).logits
        return logits

    with torch.no_grad():
        assert chosen(model, ROWS, 0, CPU, None, forward) == (Form.PACKED, "")
    assert taken[-1] == {"input_ids", "position_ids"}


def test_what_mixes_examples_is_found_out_and_said() -> None:
    model = ARCHITECTURES[0].make()

    def leak(_: object, __: object, output: Tensor) -> Tensor:
        return output + 0.05 * output.mean(dim=1, keepdim=True)

    model.model.embed_tokens.register_forward_hook(leak)
    form, told = choice(model, None)
    assert form == Form.MASKED
    assert "in no other form" in told


def test_what_cannot_be_packed_is_padded_and_that_is_said() -> None:
    model = ARCHITECTURES[0].make()
    whole = model.forward
    model.forward = lambda input_ids, attention_mask=None, use_cache=False: whole(input_ids, attention_mask)
    form, told = choice(model)
    assert form == Form.PADDED
    assert "other logits" in told
