"""What a training step wastes: padding, logits that nobody asks for, layers that were computed before.

    .venv/bin/python benchmarks/step_waste.py MODEL TRAIN.jsonl [--layers 4-7 20-23 26-29] [--rounds 2] [--out FILE]

Each row adds one thing to the row above; all are measured in one process, in turns, on one global batch. The last row
is what the product does from the second epoch on, or from the second trial on the same backbone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from mft_ray.config import parse_config
from mft_ray.data.collate import collate
from mft_ray.data.encoding import IGNORED
from mft_ray.masking import Masks, MaskSettings
from mft_ray.models.loading import load_model, load_tokenizer
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.prepare import prepare_data, tokenizer_of
from mft_ray.training.cache import Split
from mft_ray.training.step.answer_loss import AnswerLoss
from mft_ray.training.step.batches import global_batch, micro_batches
from mft_ray.training.step.prefix import Prefix, StateCache, frozen_layers

ROWS = ("padded, logits everywhere", "+ logits at answers", "+ like lengths together", "+ frozen layers kept")
MICRO = 4


def everywhere(model: Any, batch: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """The loss as it was computed before: fp32 logits at every position."""
    logits = model(**batch, use_cache=False).logits
    return cross_entropy(
        logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
    )


class Step:
    """One optimizer step on one global batch, in four ways."""

    def __init__(self, model: Any, split: Split, layers: str, pad_id: int, batch_size: int) -> None:
        self.model, self.split, self.pad_id, self.batch_size = model, split, pad_id, batch_size
        self.masks = Masks(model, MaskSettings(ratio=0.1, layers=layers), cache=True)
        self.optimizer = torch.optim.AdamW(self.masks.scores(), lr=1e-3, fused=True)
        self.loss = AnswerLoss(model)
        states = StateCache()
        states.budget = 8e9
        self.prefix = Prefix(model, frozen_layers(model), states, ("m",), "float32")

    def take(self, row: int, number: int) -> tuple[float, float, float]:
        """Return seconds, loss and part of the tokens that is padding."""
        indices = global_batch(number, self.batch_size, len(self.split.rows), 0)
        if row >= 2:
            batches = list(micro_batches(indices, self.split.lengths, MICRO, 0, 1))
        else:
            batches = [indices[start : start + MICRO] for start in range(0, len(indices), MICRO)]
        answers = sum(self.split.answer_lengths[index] for index in indices)
        began, total, places = time.monotonic(), 0.0, 0
        for taken in batches:
            rows = [self.split.rows[index] for index in taken]
            batch = collate(rows, self.pad_id)
            labels = batch.pop("labels")
            places += labels.numel()
            cpu = torch.device("cpu")
            known = self.prefix.around(self.split.forward(rows, labels.shape[1], cpu)) if row == 3 else nullcontext()
            with known:
                loss = (self.loss if row else everywhere)(self.model, batch, labels) / answers
                loss.backward()
            total += loss.item()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.masks.update(1.0)
        seconds = time.monotonic() - began
        return seconds, total, 1 - sum(self.split.lengths[index] for index in indices) / places

    def forget(self) -> None:
        """Leave the model as it was."""
        self.masks.unload()


def measure(step: Step, rounds: int) -> dict[str, dict[str, float]]:
    """Return the best seconds of each way."""
    step.take(3, 0)  # leaves the states of the step's examples, as an earlier epoch does
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
    arguments.add_argument("--rounds", type=int, default=2)
    arguments.add_argument("--out", type=Path)
    options = arguments.parse_args()
    given = {"task": "gsm8k", "train": str(options.train), "n_train": 256, "n_validation": 2, "n_test": 2}
    config = parse_config({"model": {"path": options.model}, "data": {**given, "max_length": 1024}})
    model = load_model(options.model)
    model.train()
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder(Path(scratch))
        prepare_data(config, tokenizer_of(config), model, folder)
        split, pad_id = Split(str(folder.data), "train"), load_tokenizer(options.model).pad_token_id
        found: dict[str, dict[str, dict[str, float]]] = {}
        for layers in options.layers:
            step = Step(model, split, layers, pad_id, options.batch_size)
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
    gains = [found[layers][ROWS[0]]["seconds"] / found[layers][ROWS[-1]]["seconds"] for layers in groups]
    return "\n".join([*lines, f"| gain | {' | '.join(f'{gain:.2f}' for gain in gains)} | |"])


if __name__ == "__main__":
    main()
