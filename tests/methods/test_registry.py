"""Every method keeps what the rest relies on, and one of another package is a method like any."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any, get_args

import pytest
import small_searches
import yaml

from mft_ray.config import METHODS, Config, parse_config, setting_type
from mft_ray.config.methods import GROUP, Methods, MethodSpec, Product, Recipe
from mft_ray.config.params import apply
from mft_ray.searches.space import build_space, first_point
from mft_ray.training.method_jobs import train_job

DOCS = Path(__file__).parents[2] / "docs" / "your_own_method.md"
[TOY] = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
[DECLARED] = re.findall(r"```toml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(params=METHODS)
def spec(request: pytest.FixtureRequest) -> MethodSpec:
    return METHODS[request.param]


@pytest.fixture
def config(tiny: dict[str, Any], spec: MethodSpec) -> Config:
    return parse_config({**tiny, "search": {"method": spec.name}})


class TestEveryMethod:
    def test_it_says_what_it_is_and_makes(self, spec: MethodSpec) -> None:
        assert METHODS[spec.name] is spec
        assert spec.description
        assert spec.makes in get_args(Product)

    def test_what_it_trains_is_what_it_makes(self, spec: MethodSpec, config: Config) -> None:
        how = spec.recipe(config)
        assert (how.mask is not None) == spec.masks
        assert (how.lora is not None) == (spec.makes == "adapter")

    def test_its_short_names_are_settings_that_it_is_trained_by(self, spec: MethodSpec, config: Config) -> None:
        for name, path in spec.short_names.items():
            setting_type(Config, path)
            value = first_point(config, 8)[name]
            assert reduce(getattr, path.split("."), apply(config, {name: value})) == value
        assert all(hasattr(config, section.partition(".")[0]) for section in spec.sections)

    def test_a_search_over_it_begins_with_its_own_setting(self, spec: MethodSpec, config: Config) -> None:
        space, first = build_space(config, 8), first_point(config, 8)
        assert space.keys() == first.keys() == spec.short_names.keys()
        if spec.preset is not None:
            assert first.keys() <= spec.preset(config, 8).keys()

    def test_its_job_is_the_same_each_time(self, spec: MethodSpec, config: Config) -> None:
        assert train_job(spec.name, config, **paths()) == train_job(spec.name, config, **paths())


def paths() -> dict[str, Any]:
    scaling = parse_config({"model": {"path": "a"}}).scaling
    return {"model": "a", "data": "b", "out": "c", "scaling": scaling}


def test_two_methods_of_one_name_are_refused() -> None:
    mine = MethodSpec("mine", "my own", "mask", lambda config: Recipe(config.train, config.mask), ("mask", "train"))
    methods = Methods()
    methods.register(mine)
    with pytest.raises(ValueError, match="there are two methods mine"):
        methods.register(mine)


def installed(site: Path, text: str) -> dict[str, str]:
    """Have a package with one method, as pip would leave it; return the environment that has it."""
    (site / "toy-1.0.dist-info").mkdir(parents=True)
    (site / "toy.py").write_text(text)
    (site / "toy-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    [(group, points)] = tomllib.loads(DECLARED)["project"]["entry-points"].items()
    assert group == GROUP
    lines = [f"[{group}]", *(f"{name} = {module}" for name, module in points.items())]
    (site / "toy-1.0.dist-info" / "entry_points.txt").write_text("\n".join(lines))
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))}


def test_a_broken_package_is_named(tmp_path: Path) -> None:
    environment = installed(tmp_path / "site", "raise RuntimeError('no such luck')")
    command = [sys.executable, "-m", "mft_ray", "train", "--method", "mft", "--config", "none", "--out", "x"]
    ended = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=400)
    assert ended.returncode == 2
    assert (
        "entry point toy (toy) of group mft_ray.methods cannot be loaded: RuntimeError('no such luck')" in ended.stderr
    )
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_a_method_of_another_package_is_searched_and_judged(
    tmp_path: Path, make_tiny: Callable[[], dict[str, Any]]
) -> None:
    environment = installed(tmp_path / "site", TOY)
    tree = make_tiny()
    tree["search"] = {"method": "toy", "trials": 2, "space": {"ratio": [0.1, 0.3]}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
    ended = small_searches.run(tmp_path, "--config", "tiny.yaml", "--set", "run.dir=run", **environment)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    verdict = json.loads((tmp_path / "run" / "verdict.json").read_text())
    assert verdict["method"] == "toy"
    assert "the masked model scores" in verdict["sentence"]
    assert (tmp_path / "run" / "best" / "mask.safetensors").exists()
