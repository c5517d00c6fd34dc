"""The public API: its examples run as they stand, and its mistakes are told as the command tells them."""

from __future__ import annotations

import doctest
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mft_ray
from mft_ray import api
from mft_ray.errors import UserError

FUNCTIONS = (
    "search",
    "load_run",
    "compare",
    "experiment",
    "train",
    "evaluate",
    "score",
    "export",
    "push",
    "load_masked",
)
# [... stands for lines of progress, and ... for whatever a model of this size learns.
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def test_all_of_it_can_be_had_from_the_package() -> None:
    for name in mft_ray.__all__:
        assert getattr(mft_ray, name) is not None
    assert set(FUNCTIONS) <= set(mft_ray.__all__)
    assert set(mft_ray.__all__) - {"__version__"} <= set(dir(mft_ray))


def test_every_function_has_an_example() -> None:
    for name in FUNCTIONS:
        assert doctest.DocTestParser().get_examples(getattr(api, name).__doc__), name


@pytest.mark.slow
@pytest.mark.core
@pytest.mark.timeout(900)
def test_the_examples_run_as_they_stand(
    ray_cluster: None, make_tiny: Callable[[], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("capitals.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n{"prompt": "2+2=", "answer": "4"}\n')
    names: dict[str, Any] = {"mft_ray": mft_ray, "config": make_tiny()}
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for name in FUNCTIONS:
        example = doctest.DocTestParser().get_doctest(getattr(api, name).__doc__, names, name, None, None)
        said: list[str] = []
        runner.run(example, out=said.append, clear_globs=False)
        assert runner.failures == 0, "".join(said)
        names |= example.globs
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    environment = json.loads(Path("runs/first/environment.json").read_text())
    assert environment["sessions"][0]["packages"]["torch"]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: mft_ray.search(), "Give either config"),
        (lambda: mft_ray.search("quickstart", resume="x"), "Give either config"),
        (lambda: mft_ray.search("quikstart"), "Cannot read the config quikstart"),
        (lambda: mft_ray.search({"search": {"trails": 4}}), "unknown key search.trails"),
        (lambda: mft_ray.search("quickstart", {"search.trials": "many"}), "search.trials: got 'many'"),
        (lambda: mft_ray.search("quickstart", ["search.trials"]), "not of the form path=value"),
        (lambda: mft_ray.search("quickstart", {"run.name.x": 1}), "name is a value, not a section"),
        (lambda: mft_ray.search(resume="nowhere", overrides={"search.trials": 9}), "nowhere/config.yaml"),
        (lambda: mft_ray.compare(), "Give either config"),
        (lambda: mft_ray.experiment("sparsity", "experiments/toy"), "There is no experiment sparsity"),
        (lambda: mft_ray.train("sft", "quickstart", out="x"), "There is no method sft"),
        (lambda: mft_ray.evaluate("x", "gsm8k", out="y", limit=0), "evaluate has .*task_limit"),
        (lambda: mft_ray.score("quickstart", split="train"), "split is 'train'"),
        (lambda: mft_ray.load_run("nowhere"), "There is no run folder nowhere"),
        (lambda: mft_ray.load_masked("nowhere/at/all", "none"), "no model folder|not a hub id|none"),
    ],
)
def test_a_mistake_is_told_and_leaves_nothing(
    call: Callable[[], object], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says):
        call()
    assert list(tmp_path.iterdir()) == []


def test_overrides_are_the_same_as_a_mapping_and_as_lines(tmp_path: Path) -> None:
    tree = {"model": {"path": "x"}}
    as_lines = api._config(tree, ["search.trials=3", "search.space.layers=[0-1]", "train.lr=1e-3"])
    as_mapping = api._config(tree, {"search.trials": 3, "search.space.layers": ["0-1"], "train.lr": 1e-3})
    assert as_lines == as_mapping == api._config(as_mapping, ())
    assert tree == {"model": {"path": "x"}}
    assert api._config(tree, {"run.dir": tmp_path}).run.dir == str(tmp_path)
