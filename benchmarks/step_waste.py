"""What a training step wastes: padding, logits that nobody asks for, layers that were computed before.

    .venv/bin/python benchmarks/step_waste.py --model MODEL --train TRAIN.jsonl [--out FILE]
    python benchmarks/step_waste.py --shape llama2-7b --dtype bfloat16 --device cuda --layers 4-7 20-23

Each row adds one thing to the row above; all are measured in one process, in turns, on one global batch. Kept layers
are what the product has from the second epoch on, or from the second trial on the same backbone. bfloat16 is
``scaling.compute: auto`` on a processor that multiplies it, and left out where the weights are bfloat16 already.

Without a model and data: random weights, and made-up examples of lengths like those of instructions (median 350 tokens,
sigma 0.7 of the logarithm, 2,048 at most), 58 % of them answers.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from step import SHAPES, load
from torch.nn.functional import cross_entropy

from mft_ray.data.encoding import IGNORED
from mft_ray.masking import Masks, MaskSettings
from mft_ray.training.step.answer_loss import AnswerLoss
from mft_ray.training.step.batches import TOKENS_AT_ONCE, global_batch, micro_batches
from mft_ray.training.step.forms import Form, arranged
from mft_ray.training.step.prefix import Prefix, frozen_layers
from mft_ray.training.step.states import Rows, StateCache

MICRO = 4


@dataclass(frozen=True)
class Way:
    """One way to take a step."""

    name: str
    answers: bool = True
    alike: bool = True
    form: Form = Form.PADDED
    kept: bool = True
    bfloat16: bool = False


WAYS = (
    Way("padded, logits everywhere", answers=False, alike=False, form=Form.MASKED, kept=False),
    Way("+ logits at answers", alike=False, form=Form.MASKED, kept=False),
    Way("+ like lengths together", form=Form.MASKED, kept=False),
    Way("+ filled by tokens, no mask", kept=False),
    Way("+ frozen layers kept"),
    Way("+ packed, not padded", form=Form.PACKED),
    Way("padded again, + compute: bfloat16", bfloat16=True),
)


class MadeUp:
    """Examples of random tokens, as `mft_ray.training.cache.Split` has them."""

    def __init__(self, count: int, vocabulary: int, most: int) -> None:
        generator = torch.Generator().manual_seed(0)
        drawn = 350 * torch.exp(0.7 * torch.randn(count, generator=generator))
        self.lengths = [int(length) for length in drawn.clamp(8, most).tolist()]
        self.rows = [self._row(length, vocabulary, generator) for length in self.lengths]
        self.answer_lengths = [sum(label != IGNORED for label in row["labels"][1:]) for row in self.rows]

    @staticmethod
    def _row(length: int, vocabulary: int, generator: torch.Generator) -> dict[str, list[int]]:
        tokens = torch.randint(vocabulary, (length,), generator=generator).tolist()
        asked = math.ceil(0.42 * length)
        return {"input_ids": tokens, "labels": [IGNORED] * asked + tokens[asked:]}

    def forward(self, rows: Sequence[Any], length: int, device: torch.device, packed: bool = False) -> Rows:
        places = [self.rows.index(row) for row in rows]
        return Rows("made up", self.lengths, places, length, device, packed)


def everywhere(model: Any, batch: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """The loss as it was computed before: fp32 logits at every position."""
    logits, targets = model(**batch, use_cache=False).logits, labels.to(batch["input_ids"].device)
    return cross_entropy(
        logits[:, :-1].float().flatten(0, 1), targets[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )


def accumulated(
    model: Any, split: Any, batches: Sequence[Sequence[int]], pad_id: int, loss: Any, form: Form, prefix: Prefix | None
) -> tuple[float, int]:
    """Leave a step's gradients in a model; return its loss, and the places of its micro-batches, padding included."""
    device = next(model.parameters()).device
    answers = sum(split.answer_lengths[index] for taken in batches for index in taken)
    total, places = torch.zeros((), device=device), 0
    for taken in batches:
        rows = [split.rows[index] for index in taken]
        batch, labels = arranged(rows, pad_id, form)
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        places += labels.numel()
        known = split.forward(rows, labels.shape[1], device, form == Form.PACKED)
        with prefix.around(known) if prefix else nullcontext():
            nll = loss(model, batch, labels) / answers
        # As in training: what the forward has chosen decides the backward pass's dtypes.
        with torch.autocast(device.type, enabled=False):
            nll.backward()
        total += nll.detach()
    return float(total), places


class Step:
    """One optimizer step on one global batch, in every way."""

    def __init__(self, model: Any, split: Any, layers: str, pad_id: int, batch_size: int, tokens: int) -> None:
        self.model, self.split, self.pad_id, self.batch_size = model, split, pad_id, batch_size
        self.tokens, self.device = tokens, next(model.parameters()).device
        self.masks = Masks(model, MaskSettings(ratio=0.1, layers=layers), cache=True)
        self.optimizer = torch.optim.AdamW(self.masks.scores(), lr=1e-3, fused=True)
        self.loss = AnswerLoss(model)
        states = StateCache()
        states.budget = 64e9
        below = frozen_layers(model)
        self.prefixes = {name: Prefix(model, below, states, (states.mine,), name) for name in ("float32", "bfloat16")}

    def take(self, way: Way, number: int) -> tuple[float, float, float]:
        """Return seconds, loss and part of the tokens that is padding."""
        indices = global_batch(number, self.batch_size, len(self.split.rows), 0)
        lengths, packed = self.split.lengths, way.form == Form.PACKED
        if way.form == Form.MASKED:
            ordered = sorted(indices, key=lambda index: -lengths[index]) if way.alike else indices
            batches = [ordered[start : start + MICRO] for start in range(0, len(indices), MICRO)]
        else:
            batches = micro_batches(indices, lengths, self.tokens, 0, 1, packed)
        loss = self.loss if way.answers else everywhere
        prefix = self.prefixes["bfloat16" if way.bfloat16 else "float32"] if way.kept else None
        self._wait()
        began = time.monotonic()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=way.bfloat16):
            total, places = accumulated(self.model, self.split, batches, self.pad_id, loss, way.form, prefix)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.masks.update(1.0)
        self._wait()
        seconds = time.monotonic() - began
        return seconds, total, 1 - sum(lengths[index] for index in indices) / places

    def forget(self) -> None:
        """Leave the model as it was."""
        self.masks.unload()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def measure(step: Step, ways: Sequence[Way], rounds: int) -> dict[str, dict[str, float]]:
    """Return the best seconds of each way."""
    for way in ways:
        step.take(way, 0)  # leaves the states of the step's examples, as an earlier epoch does
    found: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        for way in ways:
            seconds, loss, padding = step.take(way, 0)
            before = found.get(way.name, {"seconds": seconds})
            found[way.name] = {"seconds": min(seconds, before["seconds"]), "loss": loss, "padding": padding}
    return found


def read(options: argparse.Namespace, model: Any, scratch: str) -> tuple[Any, int]:
    """Return a split of real examples, and the token to pad with."""
    from mft_ray.config import parse_config  # here: made-up ones need no `datasets`
    from mft_ray.models.loading import load_tokenizer
    from mft_ray.runs.folder import RunFolder
    from mft_ray.runs.prepare import prepare_data, tokenizer_of
    from mft_ray.training.cache import Split

    given = {"task": "gsm8k", "train": str(options.train), "n_train": 256, "n_validation": 2, "n_test": 2}
    config = parse_config({"model": {"path": options.model}, "data": {**given, "max_length": 1024}})
    folder = RunFolder(Path(scratch))
    prepare_data(config, tokenizer_of(config), model, folder)
    return Split(str(folder.data), "train"), int(load_tokenizer(options.model).pad_token_id)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", help="folder or hub id; without it, random weights of --shape")
    arguments.add_argument("--train", type=Path, help="GSM8K's training file, with --model")
    arguments.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    arguments.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights")
    arguments.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--checkpointing", action="store_true", help=argparse.SUPPRESS)
    arguments.add_argument("--layers", nargs="+", default=["4-7", "20-23", "26-29"])
    arguments.add_argument("--batch-size", type=int, default=32)
    arguments.add_argument("--tokens", type=int, help="of a micro-batch; 4,096 on a GPU, else the product's")
    arguments.add_argument("--longest", type=int, default=2048, help="tokens of a made-up example, at most")
    arguments.add_argument("--rounds", type=int, default=2)
    arguments.add_argument("--out", type=Path)
    options = arguments.parse_args()
    model = load(options)
    ways = [way for way in WAYS if options.dtype == "float32" or not way.bfloat16]
    # On a GPU the product takes what fits its memory, at most four times as many.
    tokens = options.tokens or min(4096, TOKENS_AT_ONCE[options.device])
    with tempfile.TemporaryDirectory() as scratch:
        split, pad_id = (
            read(options, model, scratch)
            if options.model
            else (MadeUp(256, model.config.vocab_size, options.longest), 0)
        )
        found: dict[str, dict[str, dict[str, float]]] = {}
        for layers in options.layers:
            step = Step(model, split, layers, pad_id, options.batch_size, tokens)
            found[layers] = measure(step, ways, options.rounds)
            step.forget()
    print(f"\nseconds a step of {options.batch_size} examples, best of {options.rounds}\n")
    print(table(found, options.layers, [way.name for way in ways]))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


def table(found: dict[str, dict[str, dict[str, float]]], groups: Sequence[str], names: Sequence[str]) -> str:
    """Return what was found as Markdown, with each way's gain over the first."""
    lines = [f"| masks on layers | {' | '.join(groups)} | padding |", "| --- |" + " --- |" * (len(groups) + 1)]
    for name in names:
        pairs = [(found[layers][name]["seconds"], found[layers][names[0]]["seconds"]) for layers in groups]
        cells = [f"{seconds:.2f} ({before / seconds:.2f})" for seconds, before in pairs]
        lines.append(f"| {name} | {' | '.join(cells)} | {found[groups[0]][name]['padding']:.0%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
