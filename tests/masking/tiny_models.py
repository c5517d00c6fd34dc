"""Tiny models of three kinds to mask, and the plain PyTorch loop that a user would write."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from mft_ray.masking import Masks

Make = Callable[[], nn.Module]
TOKENS = torch.arange(12).view(2, 6)


def llama(layers: int = 4) -> nn.Module:
    """Tied embeddings."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "vocab_size": 13}
    config = LlamaConfig(**sizes, num_hidden_layers=layers, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2)
    model: nn.Module = LlamaForCausalLM(config).eval()
    return model


def gpt2(layers: int = 3) -> nn.Module:
    """Its projections are Conv1D, not Linear. No dropout, so that training mode can be compared."""
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_head": 2, "n_layer": layers, "vocab_size": 13, "n_positions": 16}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model: nn.Module = GPT2LMHeadModel(GPT2Config(**sizes, **dropout, bos_token_id=1, eos_token_id=2)).eval()
    return model


def sequential() -> nn.Module:
    """No list of decoder layers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(13, 8), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 13, bias=False)).eval()


def logits_of(model: nn.Module, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    """What a model says of tokens, whether it is of transformers or not."""
    output = model(tokens)
    logits: torch.Tensor = output if isinstance(output, torch.Tensor) else output.logits
    return logits


def loss_of(model: nn.Module, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    return nn.functional.cross_entropy(logits_of(model, tokens).float().flatten(0, 1), tokens.flatten())


def train(masks: Masks, steps: int = 5, lr: float = 0.05) -> None:
    masks.model.train()
    optimizer = torch.optim.AdamW(masks.scores(), lr=lr)
    for step in range(1, steps + 1):
        loss_of(masks.model).backward()
        optimizer.step()
        optimizer.zero_grad()
        masks.update(step / steps)
    masks.model.eval()


def gradients_of(masks: Masks) -> list[torch.Tensor]:
    """The scores' gradients, which are then gone."""
    found = [score.grad for score in masks.scores()]
    for score in masks.scores():
        score.grad = None
    assert all(gradient is not None for gradient in found)
    return [gradient for gradient in found if gradient is not None]


def copies(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether tensors by name are all equal."""
    return one.keys() == other.keys() and all(torch.equal(one[name].cpu(), other[name].cpu()) for name in one)


def bits(model: nn.Module) -> dict[str, bytes]:
    """Every parameter, to be compared bit for bit: -0.0 and 0.0 differ."""
    return {
        name: parameter.detach().contiguous().flatten().view(torch.uint8).cpu().numpy().tobytes()
        for name, parameter in model.named_parameters()
    }


def fine_tuned(make: Make) -> nn.Module:
    """As from the same maker, but for a tenth of noise: what a mask that removes deltas is for."""
    model = make()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * parameter.float().std(unbiased=False)
            parameter += (noise * 0.1).to(parameter.dtype)
    return model
