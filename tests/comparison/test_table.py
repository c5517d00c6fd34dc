"""What a person reads of a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from mft_ray.comparison.table import show
from mft_ray.runs.records import Comparison, Row, RowScore, ScoreTable
from mft_ray.training.job import Cost


def test_brackets_in_names_and_errors_are_no_markup(tmp_path: Path) -> None:
    cost: dict[str, Any] = {
        "tokens": 1,
        "flops": 1.0,
        "seconds": 1.0,
        "memory": 1.0,
        "trainable": 1,
        "artifact_bytes": 1,
    }
    scored = RowScore(score=0.5, ci95=(0.4, 0.6), delta_fft=0.0, delta_ci95=(0.0, 0.0))
    rows = [
        Row(name="[red]fft[/]", method="fft", stopped_reason="completed", cost=Cost(**cost)),
        Row(name="lora", method="lora", stopped_reason="failed", error="cannot read [/models/a] [bold"),
    ]
    table = ScoreTable(on="[/]mine", metric="score", n=10, rows={"[red]fft[/]": scored})
    file = tmp_path / "comparison.json"
    Comparison(backbone="fft", validation_metric="score", rows=rows, scores=[table]).save(file)
    console = Console(record=True, width=200, file=(tmp_path / "shown").open("w"))
    show(file, console)
    shown = console.export_text()
    for text in ("[red]fft[/]", "lora has failed: cannot read [/models/a] [bold", "[/]mine"):
        assert text in shown
