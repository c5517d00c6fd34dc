"""A step in every way of the benchmark: the same loss, and less padding, at a size that says nothing about speed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import step_waste
from step_waste import WAYS, MadeUp, Step

from mft_ray.models.loading import new_model

LLAMA = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4}


def test_all_ways_compute_the_same_loss() -> None:
    model = new_model({**LLAMA, "num_attention_heads": 4, "max_position_embeddings": 64}, 50, 0).train()
    model.requires_grad_(False)
    for way in WAYS:
        split = MadeUp(16, 50, 40)
        step = Step(model, split, "2-3", 0, 8, 64)
        losses = [step.take(way, 0)[1] for _ in range(2)]
        step.forget()
        if way is WAYS[0]:
            expected = losses
        assert losses == pytest.approx(expected, rel=2e-2 if way.bfloat16 else 1e-5)


def test_it_prints_a_table_and_writes_it_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--shape", "tiny", "--device", "cpu", "--layers", "4-7", "--batch-size", "4", "--longest", "24"]
    out = tmp_path / "waste.json"
    monkeypatch.setattr("sys.argv", ["step_waste.py", *given, "--rounds", "1", "--out", str(out)])
    step_waste.main()
    found = json.loads(out.read_text())["4-7"]
    assert list(found) == [way.name for way in WAYS]
    assert all(row["seconds"] > 0 and 0 <= row["padding"] < 1 for row in found.values())
    printed = capsys.readouterr().out
    assert all(f"| {way.name} |" in printed for way in WAYS)
