"""Our masked layer beside the reference code's: same scores in, same mask, output and score gradient out?

    .venv/bin/python benchmarks/against_reference.py modeling_llama.py

The argument is transformers/src/transformers/models/llama/modeling_llama.py of github.com/Ming-K9/MFT, from which
the class SupermaskLinearSparsity is taken. Prints a table, and exits with 1 if anything differs that is not said to.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from step import reference_layer
from torch import nn

from mft_ray.masking import Masks, MaskSettings, removed_count


def both(layer: Any, ratio: float, scores: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return mask, output and score gradient of the reference's layer and of ours."""
    torch.manual_seed(0)
    plain = nn.Linear(scores.shape[1], scores.shape[0])
    inputs, direction = torch.randn(8, scores.shape[1]), torch.randn(8, scores.shape[0])
    theirs = layer(scores.shape[1], scores.shape[0], sparsity=1 - ratio)
    theirs.load_state_dict({"weight": plain.weight, "bias": plain.bias, "scores": scores})
    output = theirs(inputs)
    output.backward(direction)
    reference = [theirs.get_subnet_mask().bool(), output.detach(), theirs.scores.grad]

    model = nn.Sequential(plain)
    masks = Masks(model, MaskSettings(ratio=ratio))
    masks.scores()[0].data.copy_(scores)
    masks.update()
    output = model(inputs)
    output.backward(direction)
    return reference, [masks.masks()["0.weight"], output.detach(), masks.scores()[0].grad]


def main() -> None:
    layer = reference_layer(Path(sys.argv[1]))
    generator = torch.Generator().manual_seed(1)
    wrong = False
    print(
        "| scores | ratio | removed: theirs, ours | mask | output | gradient |\n| --- | --- | --- | --- | --- | --- |"
    )
    for name in ("distinct", "many ties", "zeros among them"):
        for ratio in (0.0, 0.1, 0.29, 0.5, 0.9):
            scores = torch.randn(96, 160, generator=generator)
            if name == "many ties":
                scores = (scores * 4).round() / 4 + 0.125  # never 0
            if name == "zeros among them":
                scores[torch.rand(scores.shape, generator=generator) < 0.05] = 0.0
            theirs, ours = both(layer, ratio, scores)
            counts = [int((~mask).sum()) for mask in (theirs[0], ours[0])]
            same = [torch.equal(*pair) for pair in zip(theirs, ours, strict=True)]
            # Theirs has no gradient where a score is exactly 0; ours takes sign(0) as 1.
            nonzero = scores != 0
            gradient = torch.equal(theirs[2][nonzero], ours[2][nonzero])
            expected = removed_count(scores.numel(), ratio)
            told = "same" if same[2] else "same but where S = 0" if gradient else "other"
            mask = "same" if same[0] else "other count" if counts[0] != counts[1] else "other ties"
            print(
                f"| {name} | {ratio} | {counts[0]}, {counts[1]} | {mask} | {'same' if same[1] else 'follows the mask'} "
                f"| {told} |"
            )
            # The gradient depends on the mask through the output of later layers only: it must agree here.
            wrong |= (
                counts[1] != expected or not gradient or (name == "distinct" and counts[0] == counts[1] and not same[0])
            )
    sys.exit(int(wrong))


if __name__ == "__main__":
    main()
