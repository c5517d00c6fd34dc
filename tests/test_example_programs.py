"""The examples do what they say, as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_models import save_tiny

import mft_ray

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    outer = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), outer["PATH"]])
    ended = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**outer, "PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    assert "accelerator" not in ended.stdout + ended.stderr  # others' chatter
    return ended.stdout


def test_every_example_is_listed_and_tried() -> None:
    listed = (EXAMPLES / "README.md").read_text()
    files = {path.name for path in EXAMPLES.iterdir()} - {"README.md", "__pycache__"}
    assert files == {"search_and_load.py", "own_loop.py", "own_data.sh"}
    assert all(f"`{name}`" in listed for name in files)


def test_a_mask_in_a_loop_of_ones_own(tmp_path: Path) -> None:
    said = run(sys.executable, EXAMPLES / "own_loop.py", cwd=tmp_path)
    assert "step 30: loss" in said
    assert "weights are off" in said


@pytest.mark.slow
def test_a_search_from_python(tmp_path: Path) -> None:
    said = run(sys.executable, EXAMPLES / "search_and_load.py", tmp_path / "run", cwd=tmp_path)
    assert "beats FFT: " in said
    assert "weights are off" in said
    assert mft_ray.load_run(tmp_path / "run").verdict is not None


@pytest.mark.slow
def test_from_a_model_and_rows_to_a_masked_model(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    for name, first in (("train", 0), ("test", 100)):
        rows = [{"prompt": f"What is {n}?", "response": f"It is {n}."} for n in range(first, first + 60)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [model, tmp_path / "train.jsonl", tmp_path / "test.jsonl", tmp_path / "out"]
    said = run("bash", EXAMPLES / "own_data.sh", *given, cwd=tmp_path, TRIALS="2")
    assert "on test: " in said
    assert (tmp_path / "out" / "masked" / "config.json").exists()
