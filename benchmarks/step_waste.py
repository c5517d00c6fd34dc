"""What a training step wastes: padding, logits that nobody asks for, layers that were computed before.

    .venv/bin/python benchmarks/step_waste.py MODEL TRAIN.jsonl [--layers 4-7 20-23 26-29] [--rounds 2] [--out FILE]

Each row adds one thing to the row above; all are measured in one process, in turns, on one global batch. Kept layers
are what the product has from the second epoch on, or from the second trial on the same backbone. bfloat16 is
``scaling.compute: auto`` on a processor that multiplies it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from mft_ray.config import parse_config
from mft_ray.data.encoding import IGNORED
from mft_ray.masking import Masks, MaskSettings
from mft_ray.models.loading import load_model, load_tokenizer
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.prepare import prepare_data, tokenizer_of
from mft_ray.training.cache import Split
from mft_ray.training.footprint import TOKENS_AT_ONCE
from mft_ray.training.step.answer_loss import AnswerLoss
from mft_ray.training.step.batches import global_batch, micro_batches
from mft_ray.training.step.forms import Form, arranged
from mft_ray.training.step.prefix import Prefix, frozen_layers
from mft_ray.training.step.states import StateCache

ROWS = (
    "padded, logits everywhere",
    "+ logits at answers",
    "+ like lengths together",
    "+ filled by tokens, no mask",
    "+ frozen layers kept",
    "+ compute: bfloat16",
)
MICRO = 4


def everywhere(model: Any, batch: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """The loss as it was computed before: fp32 logits at every position."""
    logits = model(**batch, use_cache=False).logits
    return cross_entropy(
        logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )


class Step:
    """One optimizer step on one global batch, in every way of `ROWS`."""

    def __init__(self, model: Any, split: Split, layers: str, pad_id: int, batch_size: int, tokens: int) -> None:
        self.model, self.split, self.pad_id, self.batch_size = model, split, pad_id, batch_size
        self.tokens = tokens
        self.masks = Masks(model, MaskSettings(ratio=0.1, layers=layers), cache=True)
        self.optimizer = torch.optim.AdamW(self.masks.scores(), lr=1e-3, fused=True)
        self.loss = AnswerLoss(model)
        states = StateCache()
        states.budget = 8e9
        self.prefix, self.in_bfloat16 = (
            Prefix(model, frozen_layers(model), states, ("m",), compute) for compute in ("float32", "bfloat16")
        )

    def take(self, row: int, number: int) -> tuple[float, float, float]:
        """Return seconds, loss and part of the tokens that is padding."""
        indices = global_batch(number, self.batch_size, len(self.split.rows), 0)
        if row >= 3:
            batches = micro_batches(indices, self.split.lengths, self.tokens, 0, 1)
        else:
            ordered = sorted(indices, key=lambda index: -self.split.lengths[index]) if row == 2 else indices
            batches = [ordered[start : start + MICRO] for start in range(0, len(indices), MICRO)]
        answers = sum(self.split.answer_lengths[index] for index in indices)
        began, total, places = time.monotonic(), 0.0, 0
        for taken in batches:
            rows = [self.split.rows[index] for index in taken]
            batch, labels = arranged(rows, self.pad_id, Form.PADDED if row >= 3 else Form.MASKED)
            places += labels.numel()
            with self.known(row, rows, labels.shape[1]), torch.autocast("cpu", torch.bfloat16, enabled=row == 5):
                loss = (self.loss if row else everywhere)(self.model, batch, labels) / answers
            loss.backward()
            total += loss.item()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.masks.update(1.0)
        seconds = time.monotonic() - began
        return seconds, total, 1 - sum(self.split.lengths[index] for index in indices) / places

    def known(self, row: int, rows: list[Any], length: int) -> AbstractContextManager[Any]:
        """Context manager for the forward: what is known of the rows, if that is used."""
        if row < 4:
            return nullcontext()
        prefix = self.in_bfloat16 if row == 5 else self.prefix
        return prefix.around(self.split.forward(rows, length, torch.device("cpu")))

    def forget(self) -> None:
        """Leave the model as it was."""
        self.masks.unload()


def measure(step: Step, rounds: int) -> dict[str, dict[str, float]]:
    """Return the best seconds of each way."""
    for row in (4, 5):
        step.take(row, 0)  # leaves the states of the step's examples, as an earlier epoch does
    found: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        for number, row in enumerate(ROWS):
            seconds, loss, padding = step.take(number, 0)
            before = found.get(row, {"seconds": seconds})
            found[row] = {"seconds": min(seconds, before["seconds"]), "loss": loss, "padding": padding}
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model")
    arguments.add_argument("train", type=Path)
    arguments.add_argument("--layers", nargs="+", default=["4-7", "20-23", "26-29"])
    arguments.add_argument("--batch-size", type=int, default=32)
    arguments.add_argument("--tokens", type=int, default=TOKENS_AT_ONCE["cpu"])
    arguments.add_argument("--rounds", type=int, default=2)
    arguments.add_argument("--out", type=Path)
    options = arguments.parse_args()
    given = {"task": "gsm8k", "train": str(options.train), "n_train": 256, "n_validation": 2, "n_test": 2}
    config = parse_config({"model": {"path": options.model}, "data": {**given, "max_length": 1024}})
    model = load_model(options.model, "float32")
    model.train()
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder(Path(scratch))
        prepare_data(config, tokenizer_of(config), model, folder)
        split, pad_id = Split(str(folder.data), "train"), load_tokenizer(options.model).pad_token_id
        found: dict[str, dict[str, dict[str, float]]] = {}
        for layers in options.layers:
            step = Step(model, split, layers, pad_id, options.batch_size, options.tokens)
            found[layers] = measure(step, options.rounds)
            step.forget()
    print(f"\nseconds a step of {options.batch_size} examples, best of {options.rounds}\n")
    print(table(found, options.layers))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


def table(found: dict[str, dict[str, dict[str, float]]], groups: Sequence[str]) -> str:
    """Return what was found as Markdown."""
    lines = [f"| masks on layers | {' | '.join(groups)} | padding |", "| --- |" + " --- |" * (len(groups) + 1)]
    for row in ROWS:
        cells = [f"{found[layers][row]['seconds']:.1f}" for layers in groups]
        lines.append(f"| {row} | {' | '.join(cells)} | {found[groups[0]][row]['padding']:.0%} |")
    for row in ROWS[-2:]:
        gains = [found[layers][ROWS[0]]["seconds"] / found[layers][row]["seconds"] for layers in groups]
        lines.append(f"| gain, {row[2:]} | {' | '.join(f'{gain:.2f}' for gain in gains)} | |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
