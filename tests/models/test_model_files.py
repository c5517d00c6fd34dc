"""Checkpoints as strangers leave them: loaded as they are meant, or refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from mft_ray.data import arithmetic
from mft_ray.errors import UserError
from mft_ray.models.adapter import put_adapter
from mft_ray.models.export import save_model
from mft_ray.models.loading import check_model, load_model, load_skeleton, load_tokenizer, new_model
from mft_ray.models.vocabulary import check_vocabulary

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = {"model_type": "llama", **SIZES, "max_position_embeddings": 32}
EXPERTS = {**LLAMA, "num_key_value_heads": 2}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {**LLAMA, "tie_word_embeddings": False},
    "tied": {**LLAMA, "tie_word_embeddings": True},
    "gpt2": {"model_type": "gpt2", "n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 32},
    "mixtral": {**EXPERTS, "model_type": "mixtral", "num_local_experts": 2},
    "qwen3_moe": {
        **EXPERTS,
        "model_type": "qwen3_moe",
        "num_experts": 2,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
    },
}
WEIGHTS = "model.safetensors"
DOWN = "model.layers.0.mlp.down_proj.weight"
# One that every architecture has, as its files call it.
ONE = {
    "llama": DOWN,
    "tied": DOWN,
    "gpt2": "transformer.h.1.mlp.c_fc.weight",
    "mixtral": "model.layers.0.block_sparse_moe.experts.1.w2.weight",
    "qwen3_moe": "model.layers.1.mlp.experts.0.up_proj.weight",
}
Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A good checkpoint of each architecture."""
    root, tokenizer = tmp_path_factory.mktemp("saved"), arithmetic.tokenizer()
    for name, architecture in ARCHITECTURES.items():
        model = new_model(architecture, len(tokenizer), 0)
        save_model(model, dict(model.named_parameters()), tokenizer, root / name)
    return {name: root / name for name in ARCHITECTURES}


@pytest.fixture
def llama(saved: dict[str, Path], tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(saved["llama"], tmp_path / "model"))


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS, {"format": "pt"})


def configured(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def refused(folder: Path | str) -> str:
    """What is said where it is checked, which is what is said where it is loaded."""
    told = []
    for load in (check_model, load_model):
        with pytest.raises(UserError) as caught:
            load(folder)
        told.append(str(caught.value))
    assert told[0] == told[1]
    assert "\n" not in told[0]
    assert told[0].endswith(".")
    assert str(folder) in told[0]
    return told[0]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_whole_checkpoint_is_let_through(saved: dict[str, Path], name: str) -> None:
    structure, loaded = check_model(saved[name]), load_model(saved[name])
    shapes = {key: weight.shape for key, weight in loaded.named_parameters()}
    assert {key: weight.shape for key, weight in structure.named_parameters()} == shapes
    assert {key: weight.shape for key, weight in load_skeleton(saved[name]).named_parameters()} == shapes
    assert all(weight.is_meta for weight in structure.parameters())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_weights_that_are_missing_too_many_or_misshapen_are_named(
    saved: dict[str, Path], tmp_path: Path, name: str
) -> None:
    def changed(change: Callable[[dict[str, torch.Tensor]], object]) -> str:
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        shutil.copytree(saved[name], tmp_path / "model")
        rewritten(tmp_path / "model", change)
        return refused(tmp_path / "model")

    one = ONE[name]
    assert f"1 ({one}) are missing" in changed(lambda tensors: tensors.pop(one))
    assert "1 (model.extra.weight) are of no part" in changed(
        lambda tensors: tensors.update({"model.extra.weight": torch.ones(2)})
    )
    wrong = changed(lambda tensors: tensors.update({one: torch.ones(3, 5)}))
    assert f"1 ({one} [3, 5] for [" in wrong
    assert "have another shape" in wrong


def test_how_many_are_missing_is_said_and_three_are_named(llama: Path) -> None:
    configured(llama, num_hidden_layers=3)
    assert "9 (model.layers.2.input_layernorm.weight, " in (told := refused(llama))
    assert told.count("model.layers.2.") == 3
    configured(llama, num_hidden_layers=1)
    assert "9 (model.layers.1.input_layernorm.weight, " in refused(llama)


def test_what_transformers_rightly_ignores_is_no_fault(llama: Path, saved: dict[str, Path], tmp_path: Path) -> None:
    rewritten(llama, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    check_model(llama), load_model(llama)
    tied = Path(shutil.copytree(saved["tied"], tmp_path / "tied"))
    rewritten(tied, lambda all: all.update({"lm_head.weight": all["model.embed_tokens.weight"].clone()}))
    check_model(tied), load_model(tied)
    gpt2 = Path(shutil.copytree(saved["gpt2"], tmp_path / "gpt2"))
    rewritten(gpt2, lambda tensors: tensors.update({"transformer.h.0.attn.bias": torch.ones(1, 1, 32, 32)}))
    check_model(gpt2), load_model(gpt2)


def test_a_head_that_is_missing_is_not_drawn(llama: Path) -> None:
    def classifier(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["lm_head.weight"]
        tensors["score.weight"] = torch.ones(2, 16)

    rewritten(llama, classifier)
    assert "1 (lm_head.weight) are missing; 1 (score.weight) are of no part" in refused(llama)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_no_numbers_are_named(llama: Path, number: float, dtype: torch.dtype) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items()})
        tensors[DOWN][-1, -1] = number
        tensors["model.norm.weight"][0] = number

    rewritten(llama, change)
    assert f"2 ({DOWN}, model.norm.weight) of its tensors hold NaN" in refused(llama)


def test_a_file_that_changed_is_read_again(llama: Path) -> None:
    check_model(llama)
    rewritten(llama, lambda tensors: tensors[DOWN].fill_(float("nan")))
    assert "hold NaN" in refused(llama)


def in_shards(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    names, parts = sorted(tensors), ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    where = {name: parts[place % 2] for place, name in enumerate(names)}
    for part in parts:
        save_file({name: tensors[name] for name in names if where[name] == part}, folder / part, {"format": "pt"})
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / WEIGHTS).unlink()


def test_a_checkpoint_in_shards(llama: Path) -> None:
    expected = load_model(llama).state_dict()
    in_shards(llama)
    assert all(torch.equal(weight, expected[name]) for name, weight in load_model(llama).state_dict().items())
    (llama / "model-00002-of-00002.safetensors").unlink()
    assert "it lacks 1 (model-00002-of-00002.safetensors) of the 2 files" in refused(llama)


def test_an_index_that_says_nothing(llama: Path) -> None:
    in_shards(llama)
    for text in ("{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'):
        (llama / f"{WEIGHTS}.index.json").write_text(text)
        assert f"{WEIGHTS}.index.json" in refused(llama)


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def without_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def truncated(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-7])


def of_no_bytes(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"")


def pointer(folder: Path) -> None:
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def llama_cpp(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "model-q4.gguf")


def metas_own(folder: Path) -> None:
    empty(folder)
    (folder / "consolidated.00.pth").write_text("")


def folder_of_checkpoints(folder: Path) -> None:
    inner = folder / "checkpoint-500"
    inner.mkdir()
    for path in [path for path in folder.iterdir() if path.is_file()]:
        path.rename(inner / path.name)


def codes(folder: Path) -> None:
    rewritten(folder, lambda tensors: tensors.update({DOWN: tensors[DOWN].to(torch.int8)}))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (empty, "it has no config.json. It is empty"),
        (without_weights, "it has config.json but no weights"),
        (truncated, f"{WEIGHTS} is truncated or damaged"),
        (of_no_bytes, f"{WEIGHTS} is truncated or damaged"),
        (pointer, "run git lfs pull"),
        (llama_cpp, "gguf_file='model-q4.gguf'"),
        (metas_own, "in its maker's own format"),
        (folder_of_checkpoints, "checkpoint-500 within it has one"),
        (codes, f"stores {DOWN} as I8"),
    ],
)
def test_a_folder_that_holds_no_whole_model_says_what_it_holds(llama: Path, spoil: Change, says: str) -> None:
    spoil(llama)
    assert says in refused(llama)


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", "{}", '{"model_type": "vit"}', '{"model_type": 5}'])
def test_a_config_that_is_none(llama: Path, content: str) -> None:
    (llama / "config.json").write_text(content)
    refused(llama)


def test_a_field_of_the_wrong_kind_is_named(llama: Path) -> None:
    configured(llama, hidden_size="wide")
    assert "'hidden_size' expected int, got str" in refused(llama)


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq"}, "awq"),
        ({"load_in_4bit": True}, "bitsandbytes, 4bit"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "of-tomorrow"}, "of-tomorrow"),
    ],
)
def test_a_quantized_checkpoint_is_refused_with_what_to_do(llama: Path, how: dict[str, Any], named: str) -> None:
    configured(llama, quantization_config=how)
    told = refused(llama)
    assert f"it is quantized ({named})" in told
    assert "de-quantize" in told
    with pytest.raises(UserError, match="it is quantized"):
        load_skeleton(llama)


def test_code_beside_a_model_is_neither_run_nor_asked_about(
    llama: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("builtins.input", None)  # a question would be an error
    (llama / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    own = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model", "AutoTokenizer": ["own.Own", None]}
    configured(llama, auto_map=own)
    assert load_model(llama).config.model_type == "llama"  # for that transformers has a class of its own
    configured(llama, auto_map=own, model_type="own")
    assert "such code is never run here" in refused(llama)
    (llama / "tokenizer_config.json").write_text(json.dumps({"auto_map": own, "tokenizer_class": "Own"}))
    with pytest.raises(UserError, match=r"Cannot load a tokenizer .* such code is never run here"):
        load_tokenizer(llama)
    assert not (tmp_path / "ran").exists()


def as_pickle(folder: Path, content: Any = None) -> Path:
    file = folder / "pytorch_model.bin"
    torch.save(load_file(folder / WEIGHTS) if content is None else content, file)
    (folder / WEIGHTS).unlink(missing_ok=True)
    return file


class Command:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


def test_a_pickle_of_weights_is_read_and_one_of_more_is_not(
    llama: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = load_model(llama).state_dict()
    file = as_pickle(llama)
    check_model(llama)
    assert all(torch.equal(weight, expected[name]) for name, weight in load_model(llama).state_dict().items())
    file.write_bytes(file.read_bytes()[:500])
    assert "pytorch_model.bin is truncated or damaged" in refused(llama)
    as_pickle(llama, {"a": Command()})
    assert "pytorch_model.bin holds more than weights, and is not read" in refused(llama)
    as_pickle(llama, {"model": {"a": torch.ones(1)}, "epoch": 3})
    assert "holds other things than weights by name" in refused(llama)
    as_pickle(llama, {**expected, DOWN: torch.full((16, 24), float("nan"))})
    assert "hold NaN" in refused(llama)
    assert not (tmp_path / "ran").exists()


def make_adapter(model: Path, folder: Path, spoil: Callable[[dict[str, torch.Tensor]], object] | None = None) -> Path:
    wrapped = peft.get_peft_model(
        load_model(model), peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    wrapped.save_pretrained(folder)
    if spoil:
        tensors = load_file(folder / "adapter_model.safetensors")
        spoil(tensors)
        save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def test_an_adapter_is_no_model_and_is_not_put_on_one_unasked(llama: Path, tmp_path: Path) -> None:
    adapter = make_adapter(llama, tmp_path / "adapter")
    told = refused(adapter)
    assert f"mft-ray export --backbone {llama} --adapter {adapter} --out FOLDER" in told
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapter / name, llama / name)
    assert "holds a model and an adapter (adapter_config.json)" in refused(llama)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda all: all.pop(sorted(all)[0]), "does not fit this model: 1 ("),
        (lambda all: all.update({"base_model.model.model.extra.lora_A.weight": torch.ones(2)}), "1 (base_model.model"),
        (lambda all: all.update({sorted(all)[0]: torch.ones(2, 7)}), "cannot be put on this model"),
        (lambda all: all[sorted(all)[0]].fill_(float("nan")), "holds NaN or infinite numbers, in 1 ("),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(llama: Path, tmp_path: Path, spoil: Any, says: str) -> None:
    adapter = make_adapter(llama, tmp_path / "adapter", spoil)
    with pytest.raises(UserError) as caught:
        put_adapter(load_model(llama), adapter)
    assert says in str(caught.value)
    assert str(adapter) in str(caught.value)


def test_an_adapter_whose_files_are_damaged(llama: Path, tmp_path: Path) -> None:
    adapter = make_adapter(llama, tmp_path / "adapter")
    put_adapter(load_model(llama), adapter)
    weights, settings = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    good = weights.read_bytes(), settings.read_bytes()
    for file, content in (
        (weights, good[0][:-9]),
        (weights, b""),
        (settings, b"{"),
        (settings, b"[]"),
        (settings, b""),
    ):
        file.write_bytes(content)
        with pytest.raises(UserError, match=f"The adapter {adapter} cannot be put on this model"):
            put_adapter(load_model(llama), adapter)
        weights.write_bytes(good[0]), settings.write_bytes(good[1])
    weights.unlink()
    with pytest.raises(UserError, match="has no weights"):
        put_adapter(load_model(llama), adapter)


def test_a_vocabulary_smaller_than_the_tokenizers(llama: Path) -> None:
    tokenizer = load_tokenizer(llama)
    assert check_vocabulary(tokenizer, load_model(llama), llama) == []
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    with pytest.raises(UserError, match=rf"no embedding of: 1 \(\[PAD\]\), and the model has {rows} embeddings"):
        check_vocabulary(tokenizer, load_model(llama), llama)


def test_a_token_beyond_the_vocabulary_that_text_is_made_of(llama: Path) -> None:
    tokenizer = load_tokenizer(llama)
    tokenizer.add_tokens(["<think>"])
    with pytest.raises(UserError, match=r"no embedding of: 1 \(<think>\)"):
        check_vocabulary(tokenizer, load_model(llama), llama)
    smaller = new_model({**LLAMA}, 9, 0)
    with pytest.raises(UserError, match=f"no embedding of: {len(arithmetic.tokenizer()) - 9} "):
        check_vocabulary(load_tokenizer(llama), smaller, llama)


def test_a_special_token_that_nothing_uses_may_be_without_embedding(llama: Path) -> None:
    tokenizer = load_tokenizer(llama)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    assert check_vocabulary(tokenizer, load_model(llama), llama) == ["<image>"]
    tokenizer.chat_template = "{{ messages[0].content }}<image>"
    with pytest.raises(UserError, match="<image>"):
        check_vocabulary(tokenizer, load_model(llama), llama)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "null", "5"])
def test_a_tokenizer_of_damaged_files(llama: Path, name: str, content: str) -> None:
    (llama / name).write_text(content)
    with pytest.raises(UserError, match=f"Cannot load a tokenizer from {llama}"):
        load_tokenizer(llama)


def test_a_file_is_no_model_folder(llama: Path) -> None:
    for path in (llama / WEIGHTS, llama / "config.json"):
        assert "is a file. Give the folder that it is in" in refused(path)
