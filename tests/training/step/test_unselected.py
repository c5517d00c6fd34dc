"""What lies outside a selection and is held in fewer bits: said, counted, and refused where it cannot be."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES

from mft_ray.config import METHODS, EvaluationConfig, LoraConfig, ScalingConfig, TrainConfig, parse_config
from mft_ray.errors import UserError
from mft_ray.masking import MaskSettings
from mft_ray.models.quantized import QuantizedModel
from mft_ray.runs.once.train import train_once
from mft_ray.searches.checks import check_search
from mft_ray.training.footprint import Trained
from mft_ray.training.job import TrainJob
from mft_ray.training.method_jobs import train_job
from mft_ray.training.step.unselected import check_unselected, held_in_fewer_bits, said_of, selected

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: make .venv/more"
)
BY_KIND = {each.kind: each for each in ARCHITECTURES}
JOB = TrainJob(
    "mft",
    "model",
    "data",
    "out",
    TrainConfig(),
    EvaluationConfig(),
    ScalingConfig(),
    unselected_dtype="nf4",
    mask=MaskSettings(layers="1", target="attn"),
)


def test_it_is_said_how_many_weights_are_held_so_and_how_many_are_not(tmp_path: Path) -> None:
    BY_KIND["mixtral"].make().save_pretrained(tmp_path)
    held = QuantizedModel(str(tmp_path), "float32", None, "nf4", torch.device("cpu"))
    model = held.on(lambda model: selected(JOB, model))
    assert said_of(JOB, model) == (
        "4 linear weights outside the selection, 0.0 million numbers, are held in nf4; 4 other projections, 0.0 million"
        " numbers, cannot be (experts in one tensor, tied or transposed weights)"
    )
    everything = replace(JOB, mask=MaskSettings())
    model = held.on(lambda model: selected(everything, model))
    assert said_of(everything, model) == "no linear weight lies outside the selection, so that none is held in nf4"
    assert said_of(replace(JOB, unselected_dtype=None), model) == ""


def test_an_estimate_is_the_same_before_and_after_weights_are_held_so(tmp_path: Path) -> None:
    plain = BY_KIND["llama"].make()
    plain.save_pretrained(tmp_path)
    held = QuantizedModel(str(tmp_path), "float32", None, "nf4", torch.device("cpu"))
    model = held.on(lambda model: selected(JOB, model))
    for job in (JOB, replace(JOB, mask=None, lora=LoraConfig(layers="0", rank=2))):
        assert Trained.by(job, plain) == Trained.by(job, model)
        assert Trained.by(job, plain).weights.packed.numbers > 0
    assert held_in_fewer_bits(replace(JOB, unselected_dtype=None), plain) is None


def test_a_job_of_full_fine_tuning_holds_nothing_so() -> None:
    with pytest.raises(ValueError, match="every weight is trained"):
        replace(JOB, mask=None)
    config = parse_config({"model": {"path": "model", "unselected_dtype": "int8"}})
    for method, spec in METHODS.items():
        job = train_job(method, config, model="m", data="d", out="o", scaling=ScalingConfig())
        assert job.unselected_dtype == (None if spec.makes == "tuned model" else "int8"), method


@pytest.mark.parametrize(("kind", "projections"), [("gpt2", 8), ("falcon", 8)])
def test_a_model_without_linear_layers_of_torch_is_refused(kind: str, projections: int) -> None:
    model = BY_KIND[kind].make()
    with pytest.raises(UserError, match=f"its {projections} projections are no linear layers"):
        check_unselected("nf4", ScalingConfig(), model)
    check_unselected(None, ScalingConfig(), model)


def test_zero_3_is_refused() -> None:
    model = BY_KIND["llama"].make()
    with pytest.raises(UserError, match=r"scaling\.zero_stage 3, which shards weights"):
        check_unselected("nf4", ScalingConfig(workers=2, zero_stage=3), model)
    for stage in (0, 1, 2):
        check_unselected("nf4", ScalingConfig(workers=2, zero_stage=stage), model)  # type: ignore[arg-type]


def test_without_bitsandbytes_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'mft_ray\[8bit\]'"):
        check_unselected("int8", ScalingConfig(), BY_KIND["llama"].make())


@pytest.mark.parametrize("method", ["fft", "continued_fft"])
def test_full_fine_tuning_is_refused(method: str, tmp_path: Path) -> None:
    tree: dict[str, Any] = {"model": {"path": "model", "unselected_dtype": "nf4"}}
    refused = f"{method} trains every weight: none lies outside a selection"
    with pytest.raises(UserError, match=refused):
        check_search(parse_config({**tree, "search": {"method": method}}), BY_KIND["llama"].make())
    with pytest.raises(UserError, match=refused):
        train_once(method, parse_config(tree), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_search_does_not_choose_it() -> None:
    space = {"layers": ["0", "1"], "model.unselected_dtype": ["int8", "nf4"]}
    with pytest.raises(UserError, match=r"model\.unselected_dtype"):
        check_search(parse_config({"model": {"path": "model"}, "search": {"space": space}}), BY_KIND["llama"].make())
