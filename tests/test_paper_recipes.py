"""The paper-scale recipes: each says what the paper says, and a tiny model of the same architecture runs each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import recipe_plans
from tiny_recipes import FOLDER, LAYERS, RECIPES, SMALL, check, recipe, train_both

from mft_ray.config import ScalingConfig
from mft_ray.data.mixture import locate_training
from mft_ray.domains import DOMAINS
from mft_ray.evaluation.tasks import TASKS
from mft_ray.searches.space import points_to_evaluate
from mft_ray.training.job import Outcome
from mft_ray.workers.group import WorkerGroup

# What the paper says of FFT and MFT alike.
PROTOCOL = {
    "optimizer": "adamw",
    "lr": 2e-5,
    "schedule": "linear",
    "warmup": 0.03,
    "weight_decay": 0.0,
    "epochs": 2.0,
    "batch_size": 128,
    "patience": None,  # to the end
    "max_tokens": None,
}
RUN = {"zero_stage": 3, "compute": "bfloat16"}
MASK = {
    "init": "normal",
    "init_scale": 0.02,
    "scope": "matrix",
    "ratio": 0.1,
    "ratio_attn": None,
    "ratio_mlp": None,
    "target": "both",
    "rule": "ratio",
    "schedule": "constant",
    "hardness": "hard",
    "removes": "weight",
    "pattern": None,
}
MODELS = {"llama2-7b": "meta-llama/Llama-2-7b-hf", "llama3.1-8b": "meta-llama/Llama-3.1-8B"}
WEIGHTS = {"llama2-7b": 6_738_415_616, "llama3.1-8b": 8_030_261_248}


def given(settings: Any, facts: dict[str, Any]) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in facts}


def test_there_is_a_recipe_for_every_model_and_domain() -> None:
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_the_papers_protocol(name: str) -> None:
    model, domain = name.rsplit("-", 1)
    config = recipe(name)
    assert config.model.path == MODELS[model]
    assert (config.data.task, config.data.max_length, config.data.chat_template) == (domain, 4096, "tulu")
    assert not config.fft.given
    assert config.fft.scaling is None
    assert given(config.fft.train, PROTOCOL) == given(config.train, PROTOCOL) == PROTOCOL
    assert given(config.scaling, RUN) == RUN
    assert given(config.mask, MASK) == MASK
    assert config.mask.layers == LAYERS[domain]
    assert config.evaluation.metric == "answer_logprob"
    # The whole mixture, but for what is held out.
    assert (config.data.n_train, config.data.test, config.data.mixture) == (None, None, [])
    assert [part.rows for part in locate_training(config.data)] == [part.rows for part in DOMAINS[domain].parts]
    # A search begins with the paper's mask, and nothing stops that early.
    first = points_to_evaluate(config, depth=32)[0]
    assert first == {
        "layers": LAYERS[domain],
        "lr": 2e-5,
        **{k: MASK[k] for k in ("ratio", "target", "init", "schedule")},
    }
    assert (config.search.stop.below_fft, config.search.stop.plateau) == (False, None)


def test_two_epochs_are_as_many_steps_as_the_reference_code_takes() -> None:
    train = recipe("llama2-7b-math").train
    assert train.in_steps(60_000).steps == 938  # the paper: about 900


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_how_it_is_judged(name: str) -> None:
    config, text = recipe(name), (FOLDER / f"{name}.yaml").read_text()
    tasks = re.search(r"--tasks (\S+)", text)
    assert tasks is not None
    assert set(tasks[1].split(",")) == set(DOMAINS[config.data.task].tasks) <= set(TASKS)
    assert ("--allow-code-execution" in text) == (config.data.task == "coding")


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_it_needs(name: str) -> None:
    path = FOLDER / f"{name}.yaml"
    text = path.read_text()
    assert recipe_plans.commented(path) == text
    assert f"{WEIGHTS[name.rsplit('-', 1)[0]]:,}" in text
    assert "DOES NOT FIT" not in text


SCALING = ["scaling.workers=1", "scaling.cpus_per_worker=0.5"]


@pytest.fixture(scope="module")
def group(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerGroup]:
    """Workers for all runs: they take longer to start than all runs together."""
    scaling: ScalingConfig = recipe(RECIPES[0], *SMALL, *SCALING).scaling
    made = WorkerGroup(scaling, tmp_path_factory.mktemp("group"))
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_tiny_model_goes_the_whole_way(name: str, group: WorkerGroup, tmp_path: Path) -> None:
    def on_the_group(job: Any, stop: Any, heard: Any) -> Outcome:
        assert job.scaling == group.scaling
        return group.train(job, stop, heard)

    train_both(name, SCALING, on_the_group, tmp_path)
    check(name, tmp_path)
