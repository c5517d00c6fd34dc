"""Units of a model, what their removal promises, and that only what helps is removed."""

from __future__ import annotations

import pytest
import torch
from structured import Unit, promises, remove, units, without
from transformers import LlamaConfig, LlamaForCausalLM


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=20, initializer_range=0.2, **sizes)).eval()


@pytest.fixture
def batches() -> list[dict[str, torch.Tensor]]:
    tokens = [torch.randint(20, (4, 8), generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    return [{"input_ids": batch, "labels": batch} for batch in tokens]


@pytest.mark.parametrize(("kind", "count"), [("heads", 2 * 4), ("neurons", 2 * 32), ("norms", 5 * 16)])
def test_units_cover_their_parameters_once(model: LlamaForCausalLM, kind: str, count: int) -> None:
    found = list(units(model, kind))
    assert len(found) == len(set(found)) == count
    parameters = {unit.parameter for unit in found}
    width = sum(unit.last - unit.first for unit in found)
    assert width == sum(model.get_parameter(name).shape[-1] for name in parameters)


@pytest.mark.parametrize("kind", ["heads", "neurons", "norms"])
def test_a_promise_is_the_slope_of_the_loss(
    model: LlamaForCausalLM, batches: list[dict[str, torch.Tensor]], kind: str
) -> None:
    def loss() -> float:
        with torch.no_grad():
            return sum(float(model(**batch).loss) for batch in batches) / len(batches)

    every = list(units(model, kind))
    for unit, promise in list(zip(every, promises(model, every, batches), strict=True))[::7]:
        place = unit.of(model.get_parameter(unit.parameter).data)
        kept = place.clone()
        place.copy_(kept * 0.98)
        less = loss()
        place.copy_(kept * 1.02)
        assert (loss() - less) / 0.04 == pytest.approx(promise, rel=0.02, abs=1e-4)
        place.copy_(kept)


def test_only_what_helps_is_removed(model: LlamaForCausalLM, batches: list[dict[str, torch.Tensor]]) -> None:
    harmful = Unit("model.norm.weight", 3, 4)
    with torch.no_grad():
        model.get_parameter(harmful.parameter)[3] = 50.0  # drowns all others
    state = {name: value.clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def score() -> float:
        return -sum(float(model(**batch).loss) for batch in batches)

    before = score()
    assert without(model, harmful, score) > before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    removed = remove(model, list(units(model, "norms")), batches, score)
    assert harmful in removed
    assert score() > before
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, state[name])}
    assert changed == {unit.parameter for unit in removed}
    assert remove(model, [harmful], batches, lambda: 0.0) == []
