"""The paper-scale recipes: each says what the paper says, and a tiny model of the same architecture runs each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import recipe_plans
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mft_ray.config import Config, ScalingConfig, load_config
from mft_ray.data.mixture import locate_training
from mft_ray.data.text.template import TEMPLATES
from mft_ray.domains import DOMAINS, TREE
from mft_ray.evaluation.tasks import TASKS
from mft_ray.masking import load_mask
from mft_ray.models.export import save_model
from mft_ray.models.loading import load_model, load_tokenizer, new_model
from mft_ray.runs.once import train as train_module
from mft_ray.searches.space import points_to_evaluate
from mft_ray.training.job import Outcome
from mft_ray.workers.group import WorkerGroup

FOLDER = Path(__file__).parent.parent / "tune_spaces" / "paper"
RECIPES = [f"{model}-{domain}" for model in ("llama2-7b", "llama3.1-8b") for domain in DOMAINS]

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
LAYERS = {"math": "4-7", "coding": "20-23", "instruction": "0-3"}
MODELS = {"llama2-7b": "meta-llama/Llama-2-7b-hf", "llama3.1-8b": "meta-llama/Llama-3.1-8B"}
WEIGHTS = {"llama2-7b": 6_738_415_616, "llama3.1-8b": 8_030_261_248}
PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def recipe(name: str, *overrides: str) -> Config:
    return load_config(FOLDER / f"{name}.yaml", overrides)


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


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for every byte, and no chat template: as base models have none."""
    special = ["<pad>", "<s>", "</s>"]
    vocabulary = {token: i for i, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def start_model(name: str, folder: Path) -> str:
    """Heads grouped as in the recipe's model, as many layers as its masks need, and hardly any width."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 1 if "3.1" in name else 4}
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 24, "max_position_embeddings": 512}
    tokenizer = byte_tokenizer()
    model = new_model({"model_type": "llama", **sizes, **heads}, len(tokenizer), seed=0)
    save_model(model, dict(model.named_parameters()), tokenizer, folder)
    return str(folder)


def rows_of(columns: tuple[str, ...], name: str) -> list[dict[str, Any]]:
    """Four rows as the hub's, or as many trees of two messages."""
    rows: list[dict[str, Any]] = []
    for n in range(4):
        asked, answered = f"{name} {n}?", f"It is {n}."
        if columns == TREE:
            rows.append({"message_id": f"{n}", "parent_id": None, "role": "prompter", "text": asked})
            rows.append({"message_id": f"{n}a", "parent_id": f"{n}", "role": "assistant", "text": answered})
        elif columns == ("conversations",):
            turns = [{"from": "User", "value": asked}, {"from": "Assistant", "value": answered}]
            rows.append({"system": "", "mask": "User", "conversations": turns})
        elif columns == ("messages",):
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
            rows.append({"prompt": asked, "messages": turns})
        else:
            rows.append(dict(zip(columns, (asked, answered), strict=True)))
    return rows


def mixture(domain: str, folder: Path) -> str:
    folder.mkdir()
    for n, part in enumerate(DOMAINS[domain].parts):
        rows = rows_of(part.columns, f"part {n}")
        (folder / f"{n}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return json.dumps([{"path": str(path), "rows": 3} for path in sorted(folder.iterdir())])


SMALL = ["scaling.workers=1", "scaling.gpus_per_worker=0", "scaling.cpus_per_worker=0.5", "scaling.max_failures=0"]
SMALL += ["data.n_train=2", "data.n_validation=2", "data.n_test=2", "train.eval_every=2", "fft.train.eval_every=2"]
SMALL += ["train.batch_size=2", "fft.train.batch_size=2", "fft.train.lr=1e-3", "data.max_length=512"]


@pytest.fixture(scope="module")
def group(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerGroup]:
    """Workers for all runs: they take longer to start than all runs together."""
    scaling: ScalingConfig = recipe(RECIPES[0], *SMALL).scaling
    made = WorkerGroup(scaling, tmp_path_factory.mktemp("group"))
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_tiny_model_goes_the_whole_way(
    name: str, group: WorkerGroup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_the_group(job: Any, stop: Any, heard: Any) -> Outcome:
        assert job.scaling == group.scaling
        return group.train(job, stop, heard)

    monkeypatch.setattr(train_module, "launch", on_the_group)
    domain = name.rsplit("-", 1)[1]
    configured = partial(recipe, name, *SMALL, f"data.mixture={mixture(domain, tmp_path / 'data')}")
    start = start_model(name, tmp_path / "start")
    train_module.train_once("fft", configured(f"model.path={start}"), str(tmp_path / "fft"))
    best = str(tmp_path / "fft" / "best")
    train_module.train_once("mft", configured(f"model.path={best}"), str(tmp_path / "mask"))

    for folder in ("fft", "mask"):
        outcome = Outcome.load(tmp_path / folder / "outcome.json")
        assert [evaluation.step for evaluation in outcome.history] == [0, 2]  # two epochs of two examples, a batch each
        assert outcome.stopped_reason == "completed"
    tokenizer = load_tokenizer(best)
    assert tokenizer.chat_template == TEMPLATES["tulu"]
    assert load_tokenizer(start).chat_template is None
    before, after = (dict(load_model(path, "float32").named_parameters()) for path in (start, best))
    assert all(not torch.equal(before[key], after[key]) for key in before if "proj" in key)
    _check_mask(tmp_path / "mask" / "mask.safetensors", domain)


def _check_mask(path: Path, domain: str) -> None:
    masks = load_mask(path).masks
    first, last = map(int, LAYERS[domain].split("-"))
    places = [re.search(r"layers\.(\d+)\..*?(\w+_proj)", key) for key in masks]
    assert {(int(p[1]), p[2]) for p in places if p} == {
        (layer, projection) for layer in range(first, last + 1) for projection in PROJECTIONS
    }
    assert all(int((~mask).sum()) == int(0.1 * mask.numel()) for mask in masks.values())
