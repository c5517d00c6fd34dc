"""Tokens a second of a training step here, and of the same step by TRL's SFTTrainer, alone and with PEFT's LoRA.

    pip install trl
    .venv/bin/python benchmarks/peers.py MODEL TRAIN.jsonl [--layers 26-29] [--rounds 2] [--out FILE]

A step is 32 GSM8K examples, loss on answers only, fp32, on the CPU, fused AdamW, and neither logs nor saves. Either
every weight is trained, or of one layer group the linear projections alone: by a mask here, by TRL the weights
themselves, or LoRA of rank 64 on them. Each measurement loads the model anew and takes two steps on the same examples,
of which the second counts; all are taken in turns, round after round, in one process. ``loss`` is the mean of the two
steps: where every weight is trained it is the same for all, or they did not do the same work.

TRL gets examples of like lengths together (``group_by_length``), and is measured in every setting of `SETTINGS`: how
many examples at a time, in how many micro-batches, or packed. A mask is measured in its first epoch, when what reaches
the layer group is computed and kept, and in later ones, when it is read. 32 examples at a time need 20 GB of memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import datasets
import torch
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback

from mft_ray.config import parse_config
from mft_ray.masking import Masks, MaskSettings, select
from mft_ray.models.loading import load_model, load_tokenizer
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.prepare import prepare_data, tokenizer_of
from mft_ray.training.cache import Split
from mft_ray.training.footprint import TOKENS_AT_ONCE
from mft_ray.training.step.answer_loss import AnswerLoss
from mft_ray.training.step.batches import global_batch, micro_batches
from mft_ray.training.step.forms import Form, arranged
from mft_ray.training.step.prefix import Prefix, StateCache, frozen_layers

EXAMPLES, STEPS, RANK, LR = 32, 2, 64, 1e-5
# Settings of SFTConfig that all make one step of an epoch of 32 examples.
SETTINGS: dict[str, dict[str, Any]] = {
    "4 x 8": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 8},
    "8 x 4": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4},
    "32 x 1": {"per_device_train_batch_size": 32, "gradient_accumulation_steps": 1},
    "packed": {"packing": True, "max_length": 1024, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 32},
}


@dataclass(frozen=True)
class Work:
    """What a step is over.

    Attributes:
        model: folder or hub id.
        layers: layer group that is trained where not every weight is.
        split: holds the examples.
        indices: examples of the step.
    """

    model: str
    layers: str
    split: Split
    indices: Sequence[int]

    @property
    def tokens(self) -> int:
        """Tokens of the step, without padding."""
        return sum(self.split.lengths[index] for index in self.indices)


@dataclass(frozen=True)
class Taken:
    """Seconds of the last step, and the mean loss of all."""

    seconds: float
    loss: float


def our_step(work: Work, model: Any, loss: AnswerLoss, pad_id: int, prefix: Prefix | None) -> float:
    """Leave the gradients of a step in a model, as ``mft_ray.training.loop`` does, and return the step's loss."""
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


def ours(work: Work, masked: bool, first_epoch: bool = False) -> Taken:
    """Train every weight, or a mask.

    Args:
        work: what a step is over.
        masked: whether a mask is trained.
        first_epoch: whether no step finds what reaches the mask's layers.
    """
    model, pad_id = fresh(work), load_tokenizer(work.model).pad_token_id
    masks = Masks(model, MaskSettings(ratio=0.1, layers=work.layers), cache=True) if masked else None
    trained = masks.scores() if masks else list(model.parameters())
    optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=0.0, fused=True)
    loss, losses, states = AnswerLoss(model), [], StateCache()
    states.budget = 8e9
    for _ in range(STEPS):
        began = time.monotonic()
        states = fresh_states() if first_epoch else states
        prefix = Prefix(model, frozen_layers(model), states, ("m",), "float32") if masked else None
        losses.append(our_step(work, model, loss, pad_id, prefix))
        optimizer.step()
        optimizer.zero_grad()
        if masks:
            masks.update(1.0)
        seconds = time.monotonic() - began
    return Taken(seconds, sum(losses) / STEPS)
