from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from mft_ray.data import arithmetic
from mft_ray.data.encoding import encode
from mft_ray.evaluation.flatness import flatness
from mft_ray.models.loading import new_model

TOKENIZER = arithmetic.tokenizer()
ROWS = [dict(row) for row in encode(arithmetic.generate(1, 12, 2, 2, 0)["train"], TOKENIZER, 32)]
PAD = TOKENIZER.pad_token_id


def tiny() -> nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return new_model({"model_type": "llama", **sizes, "max_position_embeddings": 32}, len(TOKENIZER), 0)


class Logits(nn.Module):
    """A model of one weight: the logits of two tokens are w and 0, whatever it reads."""

    def __init__(self, w: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([w]))

    def forward(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        logits = torch.stack([self.w.expand(input_ids.shape), torch.zeros(input_ids.shape)], dim=-1)
        return SimpleNamespace(logits=logits)


def test_loss_and_curvature_of_one_weight() -> None:
    # The loss of token 0 is log(1 + exp(-w)); its second derivative p (1 - p).
    w = 0.7
    rows = [{"input_ids": [1, 0], "labels": [-100, 0]}, {"input_ids": [1, 1, 0], "labels": [-100, -100, 0]}]
    found = flatness(Logits(w), rows, pad_id=0, distances=(0.0, 1.0), directions=3)
    p = torch.sigmoid(torch.tensor(w)).item()
    assert found.top_eigenvalue == pytest.approx(p * (1 - p), rel=1e-4)
    for at_model, away in found.losses:
        assert at_model == pytest.approx(torch.log1p(torch.exp(torch.tensor(-w))).item(), rel=1e-5)
        # A direction is as long as the weight: one step leads to 0 or to 2 w.
        ends = [torch.log1p(torch.exp(torch.tensor(-end))).item() for end in (0.0, 2 * w)]
        assert min(abs(away - end) for end in ends) < 1e-5


def test_it_is_the_hessians_own_eigenvalue() -> None:
    torch.manual_seed(0)
    model = tiny()
    found = flatness(model, ROWS[:4], pad_id=PAD, directions=1, iterations=200)
    weights = dict(model.named_parameters())
    name = "model.layers.1.mlp.down_proj.weight"

    def loss(weight: torch.Tensor) -> torch.Tensor:
        total, count = torch.zeros(()), 0
        for row in ROWS[:4]:
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
            logits = torch.func.functional_call(model, {**weights, name: weight}, (ids,), {"use_cache": False}).logits
            total = total + nn.functional.cross_entropy(
                logits[0, :-1], labels[0, 1:], ignore_index=-100, reduction="sum"
            )
            count += int((labels[0, 1:] != -100).sum())
        return total / count

    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        block = torch.func.hessian(loss)(weights[name].detach()).reshape(16 * 24, 16 * 24)
    # Of a symmetric matrix the largest eigenvalue is at least that of any of its blocks.
    assert abs(found.top_eigenvalue) >= torch.linalg.eigvalsh(block).abs().max().item() * 0.999


def test_the_model_is_as_it_was_and_what_is_removed_stays_removed() -> None:
    model = tiny()
    weight = model.get_parameter("model.layers.0.mlp.up_proj.weight")
    with torch.no_grad():
        weight.zero_()
        model.get_parameter("model.layers.0.mlp.gate_proj.weight").zero_()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    found = flatness(model, ROWS, pad_id=PAD, batch_size=5)
    again = flatness(model, ROWS, pad_id=PAD, batch_size=12)
    for name, parameter in model.named_parameters():
        assert parameter.equal(before[name])
    assert found.top_eigenvalue == pytest.approx(again.top_eigenvalue, rel=1e-3)
    assert found.losses[0] == pytest.approx(again.losses[0], rel=1e-4)
    middle = found.distances.index(0.0)
    assert len({round(losses[middle], 5) for losses in found.losses}) == 1  # all directions begin at the model
    assert len({round(losses[0], 5) for losses in found.losses}) == len(found.losses)
    # down_proj gets nothing to work on: were the removed weights brought back, its direction would matter.
    with torch.no_grad():
        model.get_parameter("model.layers.0.mlp.down_proj.weight").mul_(3)
    assert flatness(model, ROWS, pad_id=PAD).losses[0] == pytest.approx(found.losses[0], rel=1e-4)


def test_it_needs_examples() -> None:
    with pytest.raises(ValueError, match="at least one example"):
        flatness(tiny(), [], pad_id=PAD)
