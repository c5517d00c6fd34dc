"""Tokens a second of a training step of ours and of TRL's SFTTrainer, on the same work.

    pip install trl
    .venv/bin/python benchmarks/peers.py MODEL TRAIN.jsonl [--layers 26-29] [--rounds 2] [--out FILE]

A step is 32 GSM8K examples, loss on answers only, fp32, on the CPU, fused AdamW, and neither logs nor saves. Trained is
every weight, or the linear projections of one layer group: by a mask (ours), as weights (TRL), or by LoRA of rank 64
(TRL with PEFT). Each measurement loads the model anew and takes two steps on the same examples, of which the second
counts; all are taken in turns, round after round, in one process. ``loss`` is the mean of both steps: where the same is
trained it is the same, or the work was not.

TRL puts examples of like lengths together (``group_by_length``), as we do, and is measured in every setting of
`SETTINGS`. A mask is measured in its first epoch, when the states below the layer group are computed and kept, and in
later ones, when they are there.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import datasets
import torch
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback

from mft_ray.data.encoding import IGNORED
from mft_ray.masking import Masks, MaskSettings, select
from mft_ray.models.loading import load_model, load_tokenizer
from mft_ray.training.cache import Split
from mft_ray.training.footprint import TOKENS_AT_ONCE
from mft_ray.training.step.answer_loss import AnswerLoss
from mft_ray.training.step.batches import micro_batches
from mft_ray.training.step.forms import Form, arranged
from mft_ray.training.step.prefix import Prefix, StateCache, frozen_layers

EXAMPLES, STEPS, LR, RANK = 32, 2, 1e-5, 64
# Of SFTConfig: per_device_train_batch_size, gradient_accumulation_steps, and what else. An epoch is one step in each.
SETTINGS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "4 x 8": (4, 8, {}),
    "8 x 4": (8, 4, {}),
    "32 x 1": (32, 1, {}),
    "8 x 4, padding_free": (8, 4, {"padding_free": True, "max_length": None}),
    "packing to 512": (1, 32, {"packing": True, "max_length": 512}),
    "packing to 1024": (1, 32, {"packing": True, "max_length": 1024}),
    "packing to 2048": (1, 32, {"packing": True, "max_length": 2048}),
}


@dataclass(frozen=True)
class Work:
    """What a step is over.

    Attributes:
        model: folder of the model.
        layers: layer group that is trained where not every weight is.
        split: holds the examples.
        indices: examples of the step.
    """

    model: str
    layers: str
    split: Split
    indices: Sequence[int]

    def load(self) -> Any:
        """Return the model, as no measurement before has left it."""
        model = load_model(self.model, "float32")
        model.train()
        return model

    def tokens(self) -> int:
        """Return the tokens of a step, without padding."""
        return sum(self.split.lengths[index] for index in self.indices)


@dataclass(frozen=True)
class Taken:
    """What was measured.

    Attributes:
        seconds: of the last step.
        loss: mean of all steps.
    """

    seconds: float
    loss: float


def our_step(work: Work, model: Any, loss: AnswerLoss, pad_id: int, prefix: Prefix | None) -> float:
    """Leave a step's gradients in the model, as `step_waste.Step.take` does, and return its loss."""
    answers = sum(work.split.answer_lengths[index] for index in work.indices)
    total = 0.0
    for taken in micro_batches(work.indices, work.split.lengths, TOKENS_AT_ONCE["cpu"], 0, 1):
        rows = [work.split.rows[index] for index in taken]
        batch, labels = arranged(rows, pad_id, Form.PADDED)
        forward = work.split.forward(rows, labels.shape[1], torch.device("cpu"))
        with prefix.around(forward) if prefix else nullcontext():
            nll = loss(model, batch, labels) / answers
        nll.backward()
        total += nll.item()
    return total


def fft(work: Work) -> Taken:
    """Train every weight."""
    model, pad_id = work.load(), load_tokenizer(work.model).pad_token_id
    loss, optimizer, losses = AnswerLoss(model), adamw(model.parameters()), []
    for _ in range(STEPS):
        began = time.monotonic()
        losses.append(our_step(work, model, loss, pad_id, None))
        optimizer.step()
        optimizer.zero_grad()
        seconds = time.monotonic() - began
    return Taken(seconds, sum(losses) / STEPS)


def mask(work: Work, later: bool) -> Taken:
    """Train a mask.

    Args:
        work: what a step is over.
        later: whether the second step finds what the first has kept.
    """
    model, pad_id = work.load(), load_tokenizer(work.model).pad_token_id
    masks = Masks(model, MaskSettings(ratio=0.1, layers=work.layers), cache=True)
    loss, optimizer, losses, states = AnswerLoss(model), adamw(masks.scores()), [], StateCache()
    for _ in range(STEPS):
        if not later:
            states = StateCache()
        states.budget = 8e9
        prefix = Prefix(model, frozen_layers(model), states, ("m",), "float32")
        began = time.monotonic()
        losses.append(our_step(work, model, loss, pad_id, prefix))
        optimizer.step()
        optimizer.zero_grad()
        masks.update(1.0)
        seconds = time.monotonic() - began
    return Taken(seconds, sum(losses) / STEPS)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """Return the optimizer that TRL is told to use, too."""
    return torch.optim.AdamW(parameters, lr=LR, weight_decay=0.0, fused=True)


class Clock(TrainerCallback):
    """Notes when steps end."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note it."""
        self.ends.append(time.monotonic())


def trl(work: Work, setting: str, all_weights: bool = False, lora: bool = False) -> Taken:
    """Train every weight, those of the layer group, or LoRA on them, with TRL.

    Args:
        work: what a step is over.
        setting: one of `SETTINGS`.
        all_weights: whether every weight is trained.
        lora: whether LoRA is.
    """
    from trl import SFTConfig, SFTTrainer  # type: ignore[import-not-found]

    model = work.load()
    chosen = select(model, work.layers)
    if not all_weights and not lora:
        model.requires_grad_(False)
        for weight in chosen:
            model.get_parameter(weight.name).requires_grad_(True)
    adapter = LoraConfig(r=RANK, target_modules=[weight.module for weight in chosen], task_type="CAUSAL_LM")
    rows = [work.split.rows[index] for index in work.indices]
    data = datasets.Dataset.from_list(
        [
            {"input_ids": row["input_ids"], "completion_mask": [int(label != IGNORED) for label in row["labels"]]}
            for row in rows
        ]
    )
    at_once, accumulated, more = SETTINGS[setting]
    clock = Clock()
    with tempfile.TemporaryDirectory() as scratch:
        config = SFTConfig(
            output_dir=scratch,
            num_train_epochs=STEPS,
            per_device_train_batch_size=at_once,
            gradient_accumulation_steps=accumulated,
            completion_only_loss=True,
            train_sampling_strategy="group_by_length",
            optim="adamw_torch_fused",
            learning_rate=LR,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **more,
        )
        trainer = SFTTrainer(
            model,
            config,
            train_dataset=data,
            processing_class=load_tokenizer(work.model),
            callbacks=[clock],
            peft_config=adapter if lora else None,
        )
        trainer.remove_callback(PrinterCallback)
        loss = trainer.train().training_loss
    assert len(clock.ends) == STEPS, "an epoch is not one step"
    return Taken(clock.ends[-1] - clock.ends[-2], loss)


def ways(layers: str) -> dict[str, dict[str, Callable[[Work], Taken]]]:
    """Return all ways to train, by what is trained; ours first."""
    every, group = "every weight", f"layers {layers}"
    found: dict[str, dict[str, Callable[[Work], Taken]]] = {
        every: {"ours": fft},
        group: {"ours, mask, first epoch": partial(mask, later=False), "ours, mask, later": partial(mask, later=True)},
    }
    for setting in SETTINGS:
        found[every][f"TRL, {setting}"] = partial(trl, setting=setting, all_weights=True)
        found[group][f"TRL, same weights, {setting}"] = partial(trl, setting=setting)
        found[group][f"TRL, LoRA, {setting}"] = partial(trl, setting=setting, lora=True)
    return found
