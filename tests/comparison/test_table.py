"""What a person reads of a comparison."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from mft_ray.comparison.table import show


def test_brackets_in_names_and_errors_are_no_markup(tmp_path: Path) -> None:
    cost = {"tokens": 1, "flops": 1.0, "seconds": 1.0, "memory": 1.0, "trainable": 1, "artifact_bytes": 1}
    scored = {"score": 0.5, "ci95": [0.4, 0.6], "p_value": None}
    rows = [
        {"name": "[red]fft[/]", "method": "fft", "cost": cost},
        {"name": "lora", "method": "lora", "cost": None, "error": "cannot read [/models/a] [bold"},
    ]
    table = {"on": "[/]mine", "metric": "score", "n": 10, "rows": {"[red]fft[/]": scored}}
    file = tmp_path / "comparison.json"
    file.write_text(json.dumps({"scores": [table], "rows": rows}))
    console = Console(record=True, width=200, file=(tmp_path / "shown").open("w"))
    show(file, console)
    shown = console.export_text()
    for text in ("[red]fft[/]", "lora has failed: cannot read [/models/a] [bold", "[/]mine"):
        assert text in shown
