from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from mft_ray.data import arithmetic
from mft_ray.errors import UserError
from mft_ray.models.export import save_model
from mft_ray.models.loading import load_model, load_tokenizer, new_model

LLAMA = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
TINY = {**LLAMA, "num_attention_heads": 2, "max_position_embeddings": 16}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = arithmetic.tokenizer()
    model = new_model(TINY, len(tokenizer), 0)
    save_model(model, dict(model.named_parameters()), tokenizer, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", None])
def test_a_folder_is_loaded_in_the_dtype_asked_for(folder: Path, dtype: str | None) -> None:
    model = load_model(folder, dtype)
    assert model.dtype == (torch.bfloat16 if dtype == "bfloat16" else torch.float32)
    expected = new_model(TINY, len(arithmetic.tokenizer()), 0)
    for name, parameter in model.named_parameters():
        assert parameter.equal(expected.get_parameter(name).to(model.dtype))


def test_the_home_folder_is_understood(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load_model("~/model").config.hidden_size == 16
    assert load_tokenizer("~/model").pad_token_id is not None


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
@pytest.mark.parametrize("path", ["/nowhere/model", "./modle", "~/modle", "runs/search/work/model"])
def test_a_missing_folder_is_not_looked_for_on_the_hub(load: Any, path: str) -> None:
    with pytest.raises(UserError, match=f"There is no model folder {path}"):
        load(path)


@pytest.mark.parametrize(("load", "what"), [(load_model, "model"), (load_tokenizer, "tokenizer")])
@pytest.mark.parametrize("path", ["HuggingFaceTB/SmolLM2-135M-Instrukt", "no-such-model"])
def test_what_looks_like_a_hub_id_and_cannot_be_had(
    load: Any, what: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=f"Cannot load a {what} from {path}: .*hub id that this machine can reach"):
        load(path)


def test_a_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="Cannot load a model from"):
        load_model(folder)


def test_damaged_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(UserError, match="Cannot load a model from"):
        load_model(folder)


def test_new_models_repeat_by_seed_and_leave_nothing_else() -> None:
    first, again, other = (new_model(TINY, 20, seed) for seed in (3, 3, 4))
    names = [name for name, parameter in first.named_parameters() if parameter.dim() == 2]
    assert all(first.get_parameter(name).equal(again.get_parameter(name)) for name in names)
    assert not any(first.get_parameter(name).equal(other.get_parameter(name)) for name in names)
    assert first.get_input_embeddings().weight.shape == (20, 16)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "lama"}, "lama.* llama"),
        ({"model_type": None}, "model_type"),
        ({"model_type": "vit"}, "vit"),
        ({"hidden_sise": 32}, "no hidden_sise but hidden_size"),
        ({"n_layer": 2}, "no n_layer but .*num_hidden_layers"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"hidden_size": 15}, "hidden size"),
    ],
)
def test_settings_that_make_no_model(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=f"makes no causal LM.*{reason}") as caught:
        new_model({**TINY, **change}, 20, 0)
    assert len(str(caught.value)) < 800  # not a list of all model types there are
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_eos_is_refused(tmp_path: Path) -> None:
    plain = arithmetic.tokenizer()
    PreTrainedTokenizerFast(tokenizer_object=plain.backend_tokenizer).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no end-of-sequence token"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_without_padding_pads_with_eos(tmp_path: Path) -> None:
    plain = arithmetic.tokenizer()
    PreTrainedTokenizerFast(tokenizer_object=plain.backend_tokenizer, eos_token=plain.eos_token).save_pretrained(
        tmp_path
    )
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == plain.eos_token_id
