"""Tiny models of three kinds to mask."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

Make = Callable[[], nn.Module]


def llama() -> nn.Module:
    """Four layers, tied embeddings."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "vocab_size": 13}
    model: nn.Module = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=4, tie_word_embeddings=True)).eval()
    return model


def gpt2() -> nn.Module:
    """Three layers; its projections are Conv1D, not Linear."""
    torch.manual_seed(0)
    model: nn.Module = GPT2LMHeadModel(GPT2Config(n_embd=16, n_head=2, n_layer=3, vocab_size=13, n_positions=16)).eval()
    return model


def sequential() -> nn.Module:
    """No list of decoder layers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(13, 8), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 13, bias=False)).eval()


@pytest.fixture(params=[llama, gpt2, sequential], ids=lambda make: make.__name__)
def make(request: pytest.FixtureRequest) -> Make:
    """One maker of a model after the other; two calls give equal models."""
    chosen: Make = request.param
    return chosen


@pytest.fixture(params=[llama, gpt2], ids=lambda make: make.__name__)
def make_lm(request: pytest.FixtureRequest) -> Make:
    """As `make`, only models of transformers."""
    chosen: Make = request.param
    return chosen


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.arange(12).view(2, 6)


@pytest.fixture
def logits_of() -> Callable[[nn.Module, torch.Tensor], torch.Tensor]:
    """What a model says of tokens, whether it is of transformers or not."""

    def call(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        output = model(tokens)
        result: torch.Tensor = output if isinstance(output, torch.Tensor) else output.logits
        return result

    return call
