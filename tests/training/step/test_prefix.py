"""Layers below the lowest trained one, computed once an example: the same logits and gradients for every decoder."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, Architecture
from torch import Tensor

from mft_ray.masking import Masks, MaskSettings
from mft_ray.training.step.prefix import Prefix, frozen_layers
from mft_ray.training.step.states import Rows, StateCache

LENGTHS = [6, 4, 5]
TOKENS = torch.tensor([[3, 4, 5, 6, 7, 8], [9, 10, 11, 12, 0, 0], [4, 4, 9, 2, 3, 0]])
INPUTS = {"input_ids": TOKENS, "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 5 + [0]])}
REAL = INPUTS["attention_mask"].bool()
SPLIT = "tokens"
[OPT] = [each for each in ARCHITECTURES if each.kind == "opt"]


def rows(*indices: int) -> Rows:
    return Rows(SPLIT, LENGTHS, list(indices), TOKENS.shape[1], torch.device("cpu"))


def taken(*indices: int) -> dict[str, Tensor]:
    return {name: tensor[list(indices)] for name, tensor in INPUTS.items()}


def masked(architecture: Architecture, layers: str = "1") -> tuple[Any, Masks]:
    model = architecture.make()
    return model, Masks(model, MaskSettings(ratio=0.3, layers=layers))


def cache(budget: float = 1e9) -> StateCache:
    kept = StateCache(Path(tempfile.mkdtemp()) / "states")
    kept.budget = budget
    return kept


def logits(model: Any, *indices: int) -> Tensor:
    found: Tensor = model(**taken(*indices), use_cache=False).logits
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda each: each.kind)
def test_skipped_layers_change_nothing(architecture: Architecture) -> None:
    model, masks = masked(architecture)
    assert frozen_layers(model) == 1
    prefix = Prefix(model, 1, cache(), ("m",), "float32")
    expected = logits(model, 0, 1, 2)
    expected[REAL].square().sum().backward()
    theirs = [score.grad.clone() for score in masks.scores() if score.grad is not None]
    with torch.no_grad():
        assert prefix.agrees(lambda: logits(model, 0, 1, 2), rows(0, 1, 2))
    ran: list[object] = []
    first = model.get_submodule(architecture.stack)[0]
    hook = next(first.children()).register_forward_hook(lambda *_: ran.append(1))
    for score in masks.scores():
        score.grad = None
    with prefix.around(rows(0, 1, 2)) as skipped:
        mine = logits(model, 0, 1, 2)
    assert (skipped, ran) == (1, [])
    torch.testing.assert_close(mine[REAL], expected[REAL], rtol=1e-4, atol=1e-5)
    mine[REAL].square().sum().backward()
    for gradient, other in zip([score.grad for score in masks.scores()], theirs, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-5)
    hook.remove()
    # And nothing stays behind on the model.
    torch.testing.assert_close(logits(model, 0, 1, 2)[REAL], expected[REAL], rtol=1e-4, atol=1e-5)


def test_what_is_not_there_is_computed_and_then_is_there() -> None:
    model, _ = masked(ARCHITECTURES[0])
    prefix = Prefix(model, 1, cache(), ("m",), "float32")
    seen = []
    with torch.no_grad():
        for batch in ([0, 1], [1, 0], [1, 2], [2, 0, 1]):
            with prefix.around(rows(*batch)) as skipped:
                seen.append(skipped)
                mine = logits(model, *batch)
            torch.testing.assert_close(mine[REAL[batch]], logits(model, *batch)[REAL[batch]], rtol=1e-4, atol=1e-5)
    assert seen == [0, 1, 0, 1]


def test_a_deeper_trial_begins_where_a_shallower_one_has_been() -> None:
    llama = Architecture("llama", config={"num_hidden_layers": 4})
    kept = cache()
    for layers, layer in (("1-3", 1), ("3", 3)):
        model, masks = masked(llama, layers)
        assert frozen_layers(model) == layer
        prefix = Prefix(model, layer, kept, ("m",), "float32")
        with torch.no_grad():
            expected = logits(model, 0, 1)
            seen = []
            for _ in range(2):
                with prefix.around(rows(0, 1)) as skipped:
                    seen.append(skipped)
                    mine = logits(model, 0, 1)
                torch.testing.assert_close(mine[REAL[:2]], expected[REAL[:2]], rtol=1e-4, atol=1e-5)
        masks.unload()
        assert seen == {1: [0, 1], 3: [1, 3]}[layer]


def test_states_of_another_backbone_split_or_compute_are_not_taken() -> None:
    model, _ = masked(ARCHITECTURES[0])
    kept = cache()
    with torch.no_grad(), Prefix(model, 1, kept, ("m",), "float32").around(rows(0)):
        logits(model, 0)
    other = Rows("other tokens", LENGTHS, [0], 6, torch.device("cpu"))
    for prefix, given in (
        (Prefix(model, 1, kept, ("n",), "float32"), rows(0)),
        (Prefix(model, 1, kept, ("m",), "bfloat16"), rows(0)),
        (Prefix(model, 1, kept, ("m",), "float32"), other),
    ):
        with torch.no_grad(), prefix.around(given) as skipped:
            logits(model, 0)
        assert skipped == 0


def test_a_model_that_needs_its_lower_layers_is_found_out() -> None:
    """As where upper layers take keys and values of lower ones: a difference of a hundredth is one."""
    model, _ = masked(ARCHITECTURES[0])
    stack = model.model.layers
    seen: dict[str, Tensor] = {}
    stack[0].mlp.register_forward_hook(lambda _, __, out: seen.update(aside=out))
    stack[1].mlp.register_forward_hook(lambda _, __, out: out + seen.pop("aside", torch.zeros(1)) * 0.3)
    with torch.no_grad():
        assert not Prefix(model, 1, cache(), ("m",), "float32").agrees(lambda: logits(model, 0, 1), rows(0, 1))


def test_a_forward_that_a_library_has_put_there_stays() -> None:
    model, _ = masked(ARCHITECTURES[0])
    first, called = model.model.layers[0], list[int]()
    whole = first.forward

    def theirs(*given: Any, **named: Any) -> Any:
        called.append(1)
        return whole(*given, **named)

    first.forward = theirs
    with torch.no_grad():
        assert Prefix(model, 1, cache(), ("m",), "float32").agrees(lambda: logits(model, 0, 1), rows(0, 1))
        before = len(called)
        logits(model, 0, 1)
    assert len(called) == before + 1


def test_an_error_on_the_way_is_a_no() -> None:
    model, _ = masked(ARCHITECTURES[0])
    stack = model.model.layers
    seen: dict[str, Tensor] = {}
    stack[0].mlp.register_forward_hook(lambda _, __, out: seen.update(aside=out))
    stack[1].mlp.register_forward_hook(lambda _, __, out: out + seen.pop("aside"))
    with torch.no_grad():
        assert not Prefix(model, 1, cache(), ("m",), "float32").agrees(lambda: logits(model, 0, 1), rows(0, 1))
        assert "forward" not in vars(stack[0])


def test_a_disk_without_room_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    model, _ = masked(ARCHITECTURES[0])
    with torch.no_grad():
        expected = logits(model, 0, 1)
        prefix = Prefix(model, 1, cache(), ("m",), "float32")
        for _ in range(2):
            with prefix.around(rows(0, 1)) as skipped:
                assert torch.equal(logits(model, 0, 1), expected)
            assert skipped == 0


@pytest.mark.parametrize(
    ("architecture", "layers", "expected"),
    [
        (ARCHITECTURES[0], "0", 0),
        (ARCHITECTURES[0], "1", 1),
        (ARCHITECTURES[0], "all", 0),
        (Architecture("gpt2", ["attn.c_attn"], ["mlp.c_fc"], {"n_positions": 32, "resid_pdrop": 0.1}), "1", 0),
        (Architecture("gpt2", ["attn.c_attn"], ["mlp.c_fc"], {"n_positions": 32, "embd_pdrop": 0.1}), "1", 0),
        (Architecture("llama", config={"attention_dropout": 0.1}), "1", 0),
        (replace(OPT, config={**OPT.config, "dropout": 0.1}), "1", 0),
        (replace(OPT, config={**OPT.config, "layerdrop": 0.1}), "1", 0),
        (OPT, "1", 1),
    ],
)
def test_only_what_is_frozen_and_certain_is_below(architecture: Architecture, layers: str, expected: int) -> None:
    model, _ = masked(architecture, layers)
    assert frozen_layers(model) == expected


def test_a_model_that_is_all_trained_has_nothing_below() -> None:
    assert frozen_layers(ARCHITECTURES[0].make()) == 0


def test_trained_embeddings_leave_nothing_below() -> None:
    model, _ = masked(ARCHITECTURES[1])
    model.get_input_embeddings().weight.requires_grad_(True)
    assert frozen_layers(model) == 0
