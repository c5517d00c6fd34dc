"""The paper's recipes with tiny models of the same architecture, on rows like those of their mixtures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mft_ray.config import Config, load_config
from mft_ray.data.text.template import TEMPLATES
from mft_ray.domains import DOMAINS, TREE
from mft_ray.masking import load_mask
from mft_ray.models.export import save_model
from mft_ray.models.loading import load_model, load_tokenizer, new_model
from mft_ray.runs.once import train as train_module
from mft_ray.training.job import Outcome

FOLDER = Path(__file__).parents[2] / "tune_spaces" / "paper"
RECIPES = [f"{model}-{domain}" for model in ("llama2-7b", "llama3.1-8b") for domain in DOMAINS]
LAYERS = {"math": "4-7", "coding": "20-23", "instruction": "0-3"}
PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
SMALL = ["scaling.gpus_per_worker=0", "scaling.max_failures=0"]
SMALL += ["data.n_train=2", "data.n_validation=2", "data.n_test=2", "train.eval_every=2", "fft.train.eval_every=2"]
SMALL += ["train.batch_size=2", "fft.train.batch_size=2", "fft.train.lr=1e-3", "data.max_length=512"]
# Trains a job, as `mft_ray.workers.launch.launch` does.
Launch = Callable[[Any, Any, Any], Outcome]


def recipe(name: str, *overrides: str) -> Config:
    return load_config(FOLDER / f"{name}.yaml", overrides)


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


def train_both(name: str, scaling: Sequence[str], launch: Launch, home: Path) -> None:
    """Have a recipe's FFT and then its mask trained, on workers that are there: they take longer to start."""
    domain = name.rsplit("-", 1)[1]
    small = [*SMALL, *scaling, f"data.mixture={mixture(domain, home / 'data')}"]
    configured = partial(recipe, name, *small)
    with patch.object(train_module, "launch", launch):
        start = start_model(name, home / "start")
        train_module.train_once("fft", configured(f"model.path={start}"), str(home / "fft"))
        best = str(home / "fft" / "best")
        train_module.train_once("mft", configured(f"model.path={best}"), str(home / "mask"))


def check(name: str, home: Path) -> None:
    """Fail unless that has left what the recipe says."""
    for folder in ("fft", "mask"):
        outcome = Outcome.load(home / folder / "outcome.json")
        assert [evaluation.step for evaluation in outcome.history] == [0, 2]  # two epochs of two examples, a batch each
        assert outcome.stopped_reason == "completed"
    start, best = str(home / "start"), str(home / "fft" / "best")
    tokenizer = load_tokenizer(best)
    assert tokenizer.chat_template == TEMPLATES["tulu"]
    assert load_tokenizer(start).chat_template is None
    before, after = (dict(load_model(path, "float32").named_parameters()) for path in (start, best))
    assert all(not torch.equal(before[key], after[key]) for key in before if "proj" in key)
    check_mask(home / "mask" / "mask.safetensors", name.rsplit("-", 1)[1])


def check_mask(path: Path, domain: str) -> None:
    masks = load_mask(path).masks
    first, last = map(int, LAYERS[domain].split("-"))
    places = [re.search(r"layers\.(\d+)\..*?(\w+_proj)", key) for key in masks]
    assert {(int(p[1]), p[2]) for p in places if p} == {
        (layer, projection) for layer in range(first, last + 1) for projection in PROJECTIONS
    }
    assert all(int((~mask).sum()) == int(0.1 * mask.numel()) for mask in masks.values())
