"""One search that several modules look at: by another method and a metric that generates, with a whole verdict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mft_ray.config import parse_config
from mft_ray.runs.folder import RunFolder
from mft_ray.searches.pipeline import search


@pytest.fixture(scope="session")
def lora_run(
    ray_cluster: None, make_tiny: Callable[[], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> RunFolder:
    """A search over LoRA's settings, watched by one forward per example and decided by generation."""
    home: Path = tmp_path_factory.mktemp("lora")
    (home / "mine.jsonl").write_text('{"prompt": "1+2=", "answer": "3"}\n{"prompt": "2+2=", "answer": "4"}\n')
    (home / "theirs.jsonl").write_text('{"prompt": "3+2=", "answer": "5"}\n{"prompt": "3+3=", "answer": "6"}\n')
    tree = make_tiny()
    tree["run"]["dir"] = str(home / "run")
    stop = {"below_fft": False, "plateau": None}
    tree["search"] = {"method": "lora", "trials": 3, "space": {"rank": [2, 4]}, "keep": 1, "stop": stop}
    tasks = {"tasks": [str(home / "mine.jsonl")], "other_tasks": [str(home / "theirs.jsonl")], "task_max_new_tokens": 4}
    tree["evaluation"] = {"metric": "generated_match", "resamples": 500, "max_new_tokens": 4, **tasks}
    tree["verdict"] = {"seeds": 2, "rivals": ["l1_mask", "wanda_mask"]}
    tree["lora"] = {"rank": 2, "lr": 1e-2}
    return search(parse_config(tree))
