"""A model with something put on it, in another dtype, is the model in that dtype with it: positions are not rounded."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from architectures import ARCHITECTURES, Architecture
from transformers import PreTrainedModel

from mft_ray.data import arithmetic
from mft_ray.evaluation.loaded_model import Backbone
from mft_ray.masking import MaskFile, Masks, MaskSettings, fingerprint, load_mask, save_mask
from mft_ray.models.adapter import save_adapter
from mft_ray.models.artifacts import load_with
from mft_ray.models.loading import load_model, load_to_train, new_model

DTYPES = ["float32", "bfloat16"]


def save(folder: Path, architecture: Architecture, dtype: str) -> str:
    architecture.make().to(getattr(torch, dtype)).save_pretrained(folder)
    return str(folder)


def check(found: PreTrainedModel, wanted: PreTrainedModel) -> None:
    """Compare all that a model computes with."""
    mine, theirs = ({**dict(each.named_parameters()), **dict(each.named_buffers())} for each in (found, wanted))
    for name, tensor in theirs.items():
        held = mine[name if name in mine else name.replace(".weight", ".base_layer.weight")]  # beneath an adapter
        assert held.dtype == tensor.dtype, name
        assert torch.equal(held, tensor), name


@pytest.mark.parametrize(("stored", "dtype"), [("float32", "bfloat16"), ("bfloat16", "bfloat16")])
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda each: each.kind)
def test_a_mask_in_any_dtype(architecture: Architecture, stored: str, dtype: str, tmp_path: Path) -> None:
    path, file = save(tmp_path / "model", architecture, stored), tmp_path / "mask.safetensors"
    model, settings = load_model(path), MaskSettings(ratio=0.3)
    save_mask(file, MaskFile(Masks(model, settings).masks(), settings, fingerprint(load_model(path))))
    wanted = load_model(path, dtype)
    on_it = Masks(wanted, settings)
    on_it.put(load_mask(file).masks)
    check(load_with(path, str(file), dtype), on_it.merge())  # type: ignore[arg-type]


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda each: each.kind)
def test_weights_to_train_become_those_of_the_fp32_model(
    architecture: Architecture, stored: str, tmp_path: Path
) -> None:
    path = save(tmp_path / "model", architecture, stored)
    model = load_to_train(path)
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
    check(model, load_model(path, "float32"))


@pytest.mark.parametrize("stored", DTYPES)
def test_an_adapter_in_bfloat16(stored: str, tmp_path: Path) -> None:
    path = save(tmp_path / "model", ARCHITECTURES[0], stored)
    model = load_model(path)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    state = peft.utils.get_peft_model_state_dict(wrapped)
    save_adapter(wrapped, state, fingerprint(load_model(path)), tmp_path / "adapter")
    check(load_with(path, str(tmp_path / "adapter"), "bfloat16"), load_model(path, "bfloat16"))  # B is zero


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_backbone_of_benchmark_tasks(stored: str, dtype: str, tmp_path: Path) -> None:
    tokenizer, path = arithmetic.tokenizer(), str(tmp_path / "model")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2}
    made = new_model({"model_type": "llama", **sizes}, len(tokenizer), 0)
    made.to(getattr(torch, stored)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    backbone = Backbone(path, dtype)
    assert backbone.fingerprint == fingerprint(load_model(path))
    assert backbone.about == ({} if dtype == stored else {"dtype": dtype})  # other texts are not taken for its own
    check(backbone.model.cpu(), load_model(path, dtype))
