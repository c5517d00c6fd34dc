"""Frozen linear layers in 8 or 4 bits: they compute as what their codes stand for, and the rest is the checkpoint's."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, FEW_EXPERTS, Architecture
from torch import nn

from mft_ray.errors import UserError
from mft_ray.masking import Masks, MaskSettings, fingerprint, select
from mft_ray.models.loading import load_model
from mft_ray.models.quantized import (
    QuantizedLinear,
    QuantizedModel,
    bytes_of,
    code_bytes,
    numbers_of,
    outside,
    shape_of,
)

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: make .venv/more"
)
CPU = torch.device("cpu")
TOKENS = torch.tensor([[3, 4, 5, 6, 7, 8], [9, 10, 11, 12, 2, 3]])
BY_KIND = {each.kind: each for each in ARCHITECTURES}
# Whose projections are linear layers of torch, all or some of them.
LINEAR = [each for each in ARCHITECTURES if each.kind not in ("gpt2", "falcon")]


def save(folder: Path, architecture: Architecture, dtype: str = "float32") -> str:
    architecture.make().to(getattr(torch, dtype)).save_pretrained(folder)
    return str(folder)


def names(model: nn.Module, layers: str) -> set[str]:
    return {weight.name for weight in select(model, layers)}


def held(model: nn.Module) -> dict[str, QuantizedLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}


def learned(model: Any, layers: str, autocast: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the loss of a masked model and the gradients of its scores."""
    masks = Masks(model.train(), MaskSettings(ratio=0.3, layers=layers))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(input_ids=TOKENS, use_cache=False).logits
    loss = logits.float().log_softmax(-1)[..., 3].mean()
    loss.backward()
    gradients = [scores.grad for scores in masks.scores()]
    masks.unload()
    return loss.detach(), [gradient for gradient in gradients if gradient is not None]


@pytest.mark.parametrize("bits", ["int8", "nf4"])
@pytest.mark.parametrize("architecture", LINEAR, ids=lambda each: each.kind)
def test_a_model_computes_as_with_the_weights_that_its_codes_stand_for(
    architecture: Architecture, bits: Any, tmp_path: Path
) -> None:
    path = save(tmp_path, architecture)
    # torch multiplies few experts of so small a size in float32 only.
    for autocast in (False,) if architecture.config.keys() & FEW_EXPERTS.keys() else (False, True):
        for layers in ("0", "1"):  # gradients flow through what is held so, or above it
            mine = QuantizedModel(path, "float32", None, bits, CPU).on(lambda model, it=layers: names(model, it))
            plain = load_model(path, "float32")
            layers_of = held(mine)
            assert layers_of
            for name, layer in layers_of.items():
                before = plain.get_submodule(name).weight.detach()
                error = float((layer.weight - before).norm() / before.norm())
                assert 0 < error < {"int8": 0.02, "nf4": 0.15}[bits], name
                plain.get_submodule(name).weight.data = layer.weight
            (loss, gradients), (wanted, theirs) = (learned(each, layers, autocast) for each in (mine, plain))
            assert torch.equal(loss, wanted)
            assert len(gradients) == len(theirs) > 0
            assert all(map(torch.equal, gradients, theirs))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "opt", "gemma3_text"])
def test_only_linear_weights_outside_the_selection_are_held_in_codes(kind: str, tmp_path: Path) -> None:
    path = save(tmp_path, BY_KIND[kind], "bfloat16")
    model = QuantizedModel(path, "bfloat16", None, "nf4", CPU).on(lambda model: names(model, "1"))
    plain = load_model(path)
    assert {f"{name}.weight" for name in held(model)} == names(plain, "0")
    kept = dict(model.named_parameters())
    for name, parameter in plain.named_parameters():  # biases of layers in codes as well
        if name not in names(plain, "0"):
            assert torch.equal(kept.pop(name), parameter), name
            assert model.get_parameter(name).dtype == parameter.dtype
    assert kept == {}
    assert not any(parameter.requires_grad for module in held(model).values() for parameter in module.parameters())
    assert model.state_dict().keys() == plain.state_dict().keys() - names(plain, "0")  # no codes in a checkpoint


def test_experts_and_transposed_layers_stay_and_are_counted() -> None:
    mixtral = BY_KIND["mixtral"].make()
    found = outside(mixtral, names(mixtral, "0"))
    assert {weight.name.split(".")[3] for weight in found.linear} == {"self_attn"}
    assert [weight.name for weight in found.others] == [
        f"model.layers.1.mlp.experts.{name}" for name in ("gate_up_proj", "down_proj")
    ]
    assert found.of_others == sum(mixtral.get_parameter(weight.name).numel() for weight in found.others)
    assert found.numbers == sum(mixtral.get_parameter(weight.name).numel() for weight in found.linear)
    assert found.largest == 16 * 16
    for kind in ("gpt2", "falcon"):
        model = BY_KIND[kind].make()
        found = outside(model, ())
        assert (found.linear, {weight.name for weight in found.others}) == ((), names(model, "all"))


def test_a_tied_weight_stays() -> None:
    model = BY_KIND["llama"].make()
    up, gate = (model.get_submodule(f"model.layers.0.mlp.{name}_proj") for name in ("up", "gate"))
    up.weight = gate.weight
    found = outside(model, ())
    assert {weight.name for weight in found.others} == {
        "model.layers.0.mlp.gate_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
    }


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_selection_after_another_has_the_checkpoints_weights(stored: str, dtype: str, tmp_path: Path) -> None:
    path = save(tmp_path, BY_KIND["qwen3"], stored)
    plain, wanted = QuantizedModel(path, dtype, None, "nf4", CPU), load_model(path, dtype)
    codes: dict[str, torch.Tensor] = {}
    for layers in ("0", "1", "0-1", "1"):
        model = plain.on(lambda model, it=layers: names(model, it))
        for name in names(wanted, layers):
            assert torch.equal(model.get_parameter(name), wanted.get_parameter(name))
            assert model.get_parameter(name).dtype == wanted.get_parameter(name).dtype
        assert {f"{name}.weight" for name in held(model)} == names(wanted, "0-1") - names(wanted, layers)
        for name, layer in held(model).items():  # packed from the same numbers, whenever
            assert torch.equal(codes.setdefault(name, layer.codes), layer.codes)
        # What is learned leaves nothing behind.
        learned(model.float() if dtype == "float32" else model, layers, autocast=False)
    assert set(codes) == {name.removesuffix(".weight") for name in names(wanted, "0-1")}
    whole = plain.on(lambda model: names(model, "all"))
    assert fingerprint(whole) == fingerprint(wanted)


def test_a_layer_in_codes_takes_the_bytes_that_are_said() -> None:
    for bits in ("int8", "nf4"):
        model = nn.Sequential(nn.Linear(256, 64), nn.Linear(64, 256, dtype=torch.bfloat16))
        biases = 4 * 64 + 2 * 256
        assert bytes_of(model) == biases + 6 * 64 * 256
        for number in (0, 1):
            model[number] = QuantizedLinear(model[number], bits, CPU)  # type: ignore[arg-type]
        assert bytes_of(model) == biases + 2 * 64 * 256 * code_bytes(bits)  # type: ignore[arg-type]
        assert numbers_of(model) == 2 * 64 * 256 + 64 + 256
        assert [shape_of(model, weight) for weight in select(model)] == [(64, 256), (256, 64)]


@pytest.mark.parametrize("width", [7, 16, 24, 48, 80, 96, 100, 320])
def test_rows_may_end_within_a_block(width: int) -> None:
    """On a CPU bitsandbytes itself unpacks rows of 16 or 48 wrongly."""
    layer = nn.Linear(width, 24)
    for bits, most in (("int8", 0.02), ("nf4", 0.15)):
        packed = QuantizedLinear(layer, bits, CPU)  # type: ignore[arg-type]
        assert packed.weight.shape == (24, width)
        assert float((packed.weight - layer.weight).norm().detach() / layer.weight.norm().detach()) < most
        assert packed(torch.ones(3, width)).shape == (3, 24)


def test_a_layer_in_codes_keeps_no_weight_for_the_backward_pass() -> None:
    layer, inputs = QuantizedLinear(nn.Linear(64, 32), "nf4", CPU), torch.ones(4, 64, requires_grad=True)
    saved: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda it: it):
        product = layer(inputs)
    assert saved == []
    product.sum().backward()
    torch.testing.assert_close(inputs.grad, layer.weight.sum(0).expand(4, 64))


@pytest.mark.parametrize("bits", ["int8", "nf4"])
def test_gradient_checkpointing_gives_the_same(bits: Any, tmp_path: Path) -> None:
    path = save(tmp_path, BY_KIND["llama"])
    model = QuantizedModel(path, "float32", None, bits, CPU).on(lambda model: names(model, "0"))
    loss, gradients = learned(model, "0", autocast=False)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again, others = learned(model, "0", autocast=False)
    assert torch.equal(loss, again)
    assert all(map(torch.equal, gradients, others))


def test_a_mask_on_codes_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, BY_KIND["llama"])
    model = QuantizedModel(path, "float32", None, "nf4", CPU).on(lambda model: names(model, "1"))
    with pytest.raises(UserError, match=r"layers\.0\.self_attn\.q_proj cannot be masked: it is quantized"):
        Masks(model, MaskSettings(layers="0-1"))
    import bitsandbytes

    theirs = nn.Sequential(bitsandbytes.nn.Linear4bit(64, 64, quant_type="nf4")).to("cpu")
    with pytest.raises(UserError, match="it is quantized"):
        Masks(theirs)
    Masks(model, MaskSettings(layers="1"))


def test_masked_twice_is_not_called_quantized() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    Masks(model)
    with pytest.raises(AttributeError, match=r"is not an nn\.Parameter|has no attribute"):
        Masks(model)
