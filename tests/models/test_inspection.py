"""What `mft-ray inspect` says is what is in the masks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import run_command

from mft_ray.data import arithmetic
from mft_ray.errors import UserError
from mft_ray.masking import MaskFile, MaskSettings, fingerprint, keep_mask, save_mask
from mft_ray.models.export import save_model
from mft_ray.models.inspection import Part, inspect, layer_of, module_of
from mft_ray.models.loading import new_model

UP, DOWN = "model.layers.0.mlp.up_proj.weight", "model.layers.10.mlp.down_proj.weight"


def saved(path: Path, masks: dict[str, torch.Tensor], backbone: str = "b") -> str:
    save_mask(path, MaskFile(masks, MaskSettings(ratio=0.5), backbone))
    return str(path)


def test_a_matrix_is_counted() -> None:
    kept = torch.tensor([[0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 1, 0], [1, 1, 1, 0, 1, 0]], dtype=torch.bool)
    part = Part.of(kept)
    assert (part.weights, part.removed, part.ratio) == (18, 11, 11 / 18)
    assert (part.rows, part.of_rows) == (1, 3)
    assert (part.columns, part.of_columns) == (2, 6)
    assert (part.fitting, part.of_groups) == (2, 3)  # of the first four inputs; two are left over
    assert 0 < part.evenness < 1


@pytest.mark.parametrize(("kept", "evenness"), [([[1, 0], [0, 1]], 1.0), ([[1, 1], [0, 0]], 0.0)])
def test_evenness_tells_spread_weights_from_whole_rows(kept: list[list[int]], evenness: float) -> None:
    part = Part.of(torch.tensor(kept, dtype=torch.bool))
    assert part.evenness == pytest.approx(evenness)


def test_stacked_experts_are_matrices_of_their_own() -> None:
    part = Part.of(torch.stack([torch.ones(2, 4), torch.zeros(2, 4)]).bool())
    assert (part.weights, part.removed, part.rows, part.of_rows) == (16, 8, 2, 4)


def test_names() -> None:
    assert (layer_of(UP), module_of(UP)) == ("0", "mlp.up_proj")
    assert (layer_of("transformer.h.3.attn.c_attn.weight"), module_of("transformer.h.3.attn.c_attn.weight")) == (
        "3",
        "attn.c_attn",
    )
    assert layer_of("head.weight") == "head.weight"


def test_masks_are_compared_layer_by_layer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    one = {name: torch.rand(40, 60) > 0.5 for name in (UP, DOWN)}
    other = {UP: one[UP].clone(), DOWN: torch.rand(40, 60) > 0.5}
    first, second = saved(tmp_path / "a.safetensors", one), saved(tmp_path / "b.safetensors", other)
    found = inspect([first, second])
    assert list(found.layers[first]) == ["0", "10"]
    assert list(found.modules[first]) == ["mlp.down_proj", "mlp.up_proj"]
    [overlap] = found.overlaps
    assert overlap.layers["0"] == 1.0
    assert overlap.layers["10"] == pytest.approx(1 / 3, abs=0.05)  # two halves at random
    assert overlap.chance == pytest.approx(1 / 3, abs=0.02)
    both = sum(int((~one[name] & ~other[name]).sum()) for name in one)
    either = sum(int((~one[name] | ~other[name]).sum()) for name in one)
    assert overlap.jaccard == both / either


def test_a_mask_is_compared_with_the_smallest_weights_of_its_backbone(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = new_model({"model_type": "llama", **sizes}, 20, 0)
    save_model(model, model.state_dict(), arithmetic.tokenizer(), tmp_path / "model")
    name = "model.layers.1.mlp.up_proj.weight"
    smallest = keep_mask(model.get_parameter(name).detach(), 0.25)
    mask = saved(tmp_path / "mask.safetensors", {name: smallest}, fingerprint(model))
    [overlap] = inspect([mask], str(tmp_path / "model")).overlaps
    assert (overlap.jaccard, overlap.layers) == (1.0, {"1": 1.0})
    wrong = saved(tmp_path / "wrong.safetensors", {name: smallest}, "of another")
    with pytest.raises(UserError, match="backbone"):
        inspect([wrong], str(tmp_path / "model"))


def test_masks_of_other_models_and_files_given_twice_are_refused(tmp_path: Path) -> None:
    one = saved(tmp_path / "a.safetensors", {UP: torch.ones(4, 8).bool()})
    other = saved(tmp_path / "b.safetensors", {UP: torch.ones(8, 8).bool()})
    with pytest.raises(UserError, match="different models"):
        inspect([one, other])
    with pytest.raises(UserError, match="twice"):
        inspect([one, one])


def test_the_command_prints_a_table_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    names = [saved(tmp_path / f"{name}.safetensors", {UP: torch.rand(8, 16) > 0.5}) for name in "ab"]
    run_command("inspect", *names)
    printed = capsys.readouterr().out
    for said in (names[0], "layer 0", "mlp.up_proj", "whole rows", "Jaccard", "by chance", "by layer 0: "):
        assert said in printed
    run_command("inspect", *names, "--json")
    content = json.loads(capsys.readouterr().out)
    assert list(content["masks"]) == names
    assert content["masks"][names[0]]["layers"]["0"]["weights"] == 128
    assert content["overlaps"][0]["second"] == names[1]
