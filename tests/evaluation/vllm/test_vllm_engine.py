"""vLLM's engine, its process included, around a stand-in with vLLM's documented interface and transformers' results."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from mft_ray.data import arithmetic
from mft_ray.errors import UserError
from mft_ray.evaluation.generation import generate
from mft_ray.evaluation.vllm.engine import VllmEngine
from mft_ray.models.export import save_model
from mft_ray.models.loading import new_model

PROMPTS = ["1+1=", "23+4=", "99-98=", "5", "12+34+56="]
OPTIONS: dict[str, Any] = {"until": ["7"], "max_new_tokens": 12, "batch_size": 3}

# Keyword arguments that vLLM has, and no others; it logs to standard output, and leaves stop strings in the tokens.
STAND_IN = """
from dataclasses import dataclass
from transformers import AutoModelForCausalLM, AutoTokenizer
import torch

@dataclass
class SamplingParams:
    temperature: float = 1.0
    max_tokens: int = 16
    stop: list | None = None
    stop_token_ids: list | None = None

@dataclass
class Output:
    token_ids: tuple
    finish_reason: str

@dataclass
class Request:
    outputs: list

class LLM:
    def __init__(self, model, *, trust_remote_code, dtype="auto", max_model_len=None, gpu_memory_utilization=0.92):
        assert trust_remote_code is False
        print("INFO a line of log")
        assert 0 < gpu_memory_utilization <= 1
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
        self.tokenizer, self.longest = AutoTokenizer.from_pretrained(model), max_model_len

    @torch.inference_mode()
    def generate(self, prompts, sampling_params, *, use_tqdm=True):
        assert sampling_params.temperature == 0
        return [Request([self.one(prompt["prompt_token_ids"], sampling_params)]) for prompt in prompts]

    def one(self, prompt, params):
        made = []
        assert len(prompt) + params.max_tokens <= self.longest
        while len(made) < params.max_tokens:
            logits = self.model(input_ids=torch.tensor([prompt + made])).logits
            made.append(int(logits[0, -1].argmax()))
            text = self.tokenizer.decode(made, skip_special_tokens=True)
            if made[-1] in params.stop_token_ids or any(stop in text for stop in params.stop or ()):
                return Output(tuple(made), "stop")
        return Output(tuple(made), "length")
"""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return arithmetic.tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> PreTrainedModel:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    made = new_model({"model_type": "llama", **sizes}, len(tokenizer), 0)
    made.generation_config.eos_token_id = tokenizer.eos_token_id
    torch.manual_seed(0)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    return made.eval()


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str = STAND_IN) -> None:
    folder.mkdir()
    (folder / "vllm.py").write_text(code)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (60, 80))


def test_it_yields_what_our_generator_does(
    model: PreTrainedModel, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path / "site", monkeypatch)
    out = tmp_path / "out"
    made = dict(VllmEngine(out)(model, tokenizer, PROMPTS, **OPTIONS))
    assert made == dict(generate(model, tokenizer, PROMPTS, **OPTIONS))
    assert {text.finished for text in made.values()} == {True, False}
    assert list(out.iterdir()) == []  # the model that was written is gone
    assert list(VllmEngine(out)(model, tokenizer, [], **OPTIONS)) == []


def test_it_generates_with_the_weights_of_now(
    model: PreTrainedModel, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path / "site", monkeypatch)
    engine, weight = VllmEngine(tmp_path), model.model.layers[1].mlp.up_proj.weight
    before = weight.detach().clone()
    plain = dict(generate(model, tokenizer, PROMPTS, **OPTIONS))
    with torch.no_grad():
        weight.mul_(torch.rand_like(weight) > 0.5)
    try:
        masked = dict(generate(model, tokenizer, PROMPTS, **OPTIONS))
        assert dict(engine(model, tokenizer, PROMPTS, **OPTIONS)) == masked != plain
    finally:
        with torch.no_grad():
            weight.copy_(before)


def test_its_failure_is_told_in_a_line(
    model: PreTrainedModel, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path / "site", monkeypatch, "class LLM:\n    pass\nraise RuntimeError('no room for the cache')\n")
    with pytest.raises(UserError, match=r"after 0 of 5 texts: RuntimeError: no room for the cache"):
        list(VllmEngine(tmp_path)(model, tokenizer, PROMPTS, **OPTIONS))


def test_without_vllm_or_a_gpu_it_says_so_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "vllm" else find(name))
    with pytest.raises(UserError, match="pip install vllm"):
        VllmEngine(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: find("sys") if name == "vllm" else find(name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU"):
        VllmEngine(tmp_path)
    VllmEngine(tmp_path, sys.executable)  # another environment's vLLM is that one's affair


def test_the_command_generates_with_it_and_mixes_no_texts(
    model: PreTrainedModel, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path / "site", monkeypatch)
    save_model(model, dict(model.named_parameters()), tokenizer, tmp_path / "tiny")
    (tmp_path / "mine.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n{"prompt": "2+2=", "answer": "4"}\n')
    arguments = ["evaluate", tmp_path / "tiny", "--tasks", tmp_path / "mine.jsonl", "--out", tmp_path / "out"]

    from command_line import run_command  # the engine's own process, which reads this file too, cannot see it

    def texts(*more: str, out: str = "out") -> list[dict[str, Any]]:
        run_command(*arguments[:-1], tmp_path / out, *more)
        [file] = (tmp_path / out).rglob("tiny.jsonl")
        return [json.loads(line) for line in file.read_text().splitlines()]

    about, *rows = texts("--engine", "vllm")
    assert about["engine"] == "vllm"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="holds what another model, or other settings, answered"):
        texts()
    assert texts(out="ours")[1:] == rows
