"""A mask in a plain PyTorch loop: no Ray, no configuration.

python examples/own_loop.py
"""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mft_ray import Masks, MaskSettings

STEPS = 30


def main() -> None:
    """Learn which weights of a small model to switch off, on tokens that repeat."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=50, **sizes))
    tokens = torch.arange(16).repeat(8, 1)
    masks = Masks(model, MaskSettings(ratio=0.2, layers="1-2", init="magnitude", schedule="anneal"))
    optimizer = torch.optim.AdamW(masks.scores(), lr=1e-2)
    for step in range(1, STEPS + 1):
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        masks.update(progress=step / STEPS)  # the mask changes here and nowhere else
        if step % 10 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    merged = masks.merge()
    off = sum(int((weight == 0).sum()) for weight in merged.parameters())
    print(f"{off:,} weights are off")


if __name__ == "__main__":
    main()
