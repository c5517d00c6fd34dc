from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mft_ray.data import arithmetic
from mft_ray.errors import UserError
from mft_ray.masking import MaskFile, Masks, MaskSettings, fingerprint, save_mask
from mft_ray.models.artifacts import export
from mft_ray.models.export import load_masked, save_model
from mft_ray.models.loading import load_model, new_model

LLAMA = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
TINY = {**LLAMA, "num_attention_heads": 2, "max_position_embeddings": 16}
SETTINGS = MaskSettings(ratio=0.25, layers="1")


@pytest.fixture(params=["float32-tied", "float32-untied", "bfloat16-untied"])
def backbone(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    dtype, tied = request.param.split("-")
    tokenizer = arithmetic.tokenizer()
    model = new_model({**TINY, "tie_word_embeddings": tied == "tied"}, len(tokenizer), 0)
    state = {name: parameter.detach().to(getattr(torch, dtype)) for name, parameter in model.named_parameters()}
    save_model(model, state, tokenizer, tmp_path / "backbone")
    return tmp_path / "backbone"


@pytest.fixture
def file(mask: MaskFile, tmp_path: Path) -> str:
    save_mask(tmp_path / "mask.safetensors", mask)
    return str(tmp_path / "mask.safetensors")


@pytest.fixture
def mask(backbone: Path) -> MaskFile:
    model = load_model(backbone)
    return MaskFile(Masks(load_model(backbone), SETTINGS).masks(), SETTINGS, fingerprint(model))


def test_what_is_saved_is_what_is_loaded(backbone: Path) -> None:
    model = load_model(backbone)
    tied = model.config.tie_word_embeddings
    expected = new_model({**TINY, "tie_word_embeddings": tied}, len(arithmetic.tokenizer()), 0)
    assert model.config.dtype == model.dtype
    for name, parameter in model.named_parameters():
        assert parameter.equal(expected.get_parameter(name).to(model.dtype))


def test_an_export_is_w_times_m_and_nothing_else(backbone: Path, mask: MaskFile, file: str, tmp_path: Path) -> None:
    export(str(backbone), file, tmp_path / "new" / "export")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["export"]
    plain = load_model(backbone)
    exported, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "new" / "export", dtype="auto", output_loading_info=True
    )
    assert not any(report.values())
    assert exported.dtype == plain.dtype
    for name, weight in exported.named_parameters():
        expected = plain.get_parameter(name).detach()
        if name in mask.masks:
            expected = expected.where(mask.masks[name], 0)
            assert int((weight == 0).sum()) == int(0.25 * weight.numel())
        assert weight.view(torch.uint8).equal(expected.view(torch.uint8))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "new" / "export")
    assert tokenizer("1+2=").input_ids == arithmetic.tokenizer()("1+2=").input_ids


def test_an_export_computes_what_the_masks_did(backbone: Path, mask: MaskFile, file: str, tmp_path: Path) -> None:
    export(str(backbone), file, tmp_path / "export")
    learning = load_model(backbone)
    Masks(learning, SETTINGS)
    tokens = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        expected = learning(tokens).logits
        assert load_model(tmp_path / "export")(tokens).logits.equal(expected)
        assert load_masked(backbone, mask)(tokens).logits.equal(expected)
    assert load_masked(backbone, mask, "bfloat16").dtype == torch.bfloat16


def test_a_mask_for_another_backbone_is_refused(backbone: Path, mask: MaskFile, file: str, tmp_path: Path) -> None:
    model = load_model(backbone)
    with torch.no_grad():
        model.get_parameter("model.norm.weight")[0] += 0.25
    save_model(model, dict(model.named_parameters()), arithmetic.tokenizer(), tmp_path / "other")
    for attempt in (
        lambda: load_masked(tmp_path / "other", mask),
        lambda: export(str(tmp_path / "other"), file, tmp_path / "export"),
    ):
        with pytest.raises(UserError, match=f"learned on another backbone: it names {mask.backbone[:12]}"):
            attempt()
    assert not list(tmp_path.glob("export*"))


def test_an_export_overwrites_nothing(backbone: Path, file: str, tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "precious").write_text("x")
    with pytest.raises(UserError, match="is not empty"):
        export(str(backbone), file, tmp_path / "export")
    assert [path.name for path in (tmp_path / "export").iterdir()] == ["precious"]


def test_a_saved_model_is_replaced_whole(backbone: Path) -> None:
    (backbone / "leftover").write_text("x")
    model = load_model(backbone)
    state = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    before = model.config.dtype
    save_model(model, state, arithmetic.tokenizer(), backbone)
    assert model.config.dtype == before
    assert not (backbone / "leftover").exists()
    assert not any(parameter.any() for parameter in load_model(backbone).parameters())
    assert [path.name for path in backbone.parent.iterdir()] == ["backbone"]


def test_what_is_saved_stops_where_its_answers_were_scored_to_end(mask: MaskFile, file: str, backbone: Path) -> None:
    template = "{% for m in messages %}{{ m['role'] + m['content'] + '<turn_end>' }}{% endfor %}"
    tokenizer = arithmetic.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["="]})  # one of its tokens
    tokenizer.chat_template = template.replace("<turn_end>", "=")
    model = load_model(backbone)
    own = model.generation_config
    assert own is not None
    own.max_length, own.eos_token_id = 27, tokenizer.eos_token_id
    save_model(model, dict(model.named_parameters()), tokenizer, backbone)
    assert model.generation_config is own  # the model that goes on being trained is as it was
    export(str(backbone), file, backbone.parent / "exported")
    ends = sorted({tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("=")})
    for folder in (backbone, backbone.parent / "exported"):
        saved = AutoModelForCausalLM.from_pretrained(folder).generation_config
        assert (saved.eos_token_id, saved.max_length) == (ends, 27)
