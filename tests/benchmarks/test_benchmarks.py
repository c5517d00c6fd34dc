"""The benchmarks run, at a size that says nothing about speed: where a GPU is lent, there is no time to mend."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent.parent / "benchmarks"
SMALL = ["--shape", "tiny", "--device", "cpu", "--tokens", "32"]


def run(script: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, FOLDER / script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows_of(path: Path) -> dict[str, dict[str, Any]]:
    content = json.loads(path.read_text())
    assert content["torch"]
    return {row["variant"]: row for row in content["rows"]}


@pytest.mark.parametrize("extra", [[], ["--compute", "bfloat16"], ["--dtype", "bfloat16", "--checkpointing"]])
def test_step_measures_every_variant_against_the_floor(extra: list[str], tmp_path: Path) -> None:
    out = tmp_path / "step.json"
    sizes = ["--length", "8", "--accumulation", "2", "--rounds", "1", "--steps", "1"]
    table = run("step.py", *SMALL, *sizes, *extra, "--lora", "--full", "--out", str(out))
    rows = rows_of(out)
    assert list(rows) == ["floor", "mft_ray", "mft_ray, W * M not kept", "LoRA r 64, all layers", "full fine-tuning"]
    assert all(name in table for name in rows)
    assert rows["floor"]["ratio"] == 1
    assert all(row["seconds"] > 0 and row["tokens_per_second"] > 0 for row in rows.values())


def test_memory_counts_bytes_per_selected_weight(tmp_path: Path) -> None:
    out = tmp_path / "memory.json"
    run("memory.py", *SMALL, "--layers", "4-7", "--out", str(out))
    rows = json.loads(out.read_text())["rows"]
    ways = ["adamw", "rmsprop"]
    if importlib.util.find_spec("bitsandbytes") is not None:
        ways += ["adamw_8bit", "adamw_8bit, bfloat16"]
    assert [row["optimizer"] for row in rows] == [way for way in ways for _ in range(2)]
    assert all(row["weights"] == 4 * (4 * 64 * 64 + 3 * 64 * 172) for row in rows)


def test_the_gpu_script_runs_its_parts_and_tells_of_those_that_fail(tmp_path: Path) -> None:
    small = {"GPU_DEVICE": "cpu", "GPU_SHAPES": "tiny", "GPU_ROUNDS": "1", "GPU_TOKENS": "32", "GPU_DTYPE": "float32"}
    path = {"PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])}

    def gpu(*arguments: str, part: str = "step-tiny") -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **path, **small, "GPU_ONLY": part}
        command = ["bash", str(FOLDER / "gpu.sh"), str(tmp_path), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=600)

    done = gpu()
    assert done.returncode == 0, done.stdout
    assert rows_of(tmp_path / "gpu-step-tiny.json")["mft_ray"]["seconds"] > 0
    broken = gpu(str(tmp_path / "no such reference"))
    assert broken.returncode == 1
    assert "step-tiny: FAILED" in broken.stdout


def test_a_study_is_kept_wherever_it_may_lie(tmp_path: Path) -> None:
    out = tmp_path / "storage.json"
    (tmp_path / "runs").mkdir()
    run("study_storage.py", "--folder", str(tmp_path / "runs"), "--trials", "3", "--json", str(out))
    rows = json.loads(out.read_text())
    assert list(rows) == ["none", "sqlite", "journal", "local", "memory"]
    assert all(row["ms at 3"] > 0 for row in rows.values())
    assert list((tmp_path / "runs").iterdir()) == []
