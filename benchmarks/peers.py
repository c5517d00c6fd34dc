"""Tokens a second of a training step of ours and of TRL's SFTTrainer, on the same work, on the CPU.

    pip install trl==1.13.0
    .venv/bin/python benchmarks/peers.py --model MODEL --train TRAIN.jsonl [--layers 26-29] [--rounds 2] [--out FILE]

A step is 32 GSM8K examples, loss on answers only, fp32, fused AdamW, and neither logs nor saves. Trained is every
weight, or the linear projections of one layer group: by a mask (ours), as weights (TRL), or by LoRA of rank 64 (TRL
with PEFT). Each measurement loads the model anew and takes two steps on the same examples, of which the second counts;
all are taken in turns, round after round, in one process. A mask is measured in its first epoch, when the states below
the layer group are computed and kept, and in later ones, when they are there. ``loss`` is the mean of both steps: every
trainer of every weight has the same, or did other work.

TRL puts examples of like lengths together (``group_by_length``), as we do. On layers 26-29 nothing was faster than
4 x 8: not 8 x 4, 32 x 1, ``padding_free`` or longer packs (which work without flash attention here). Its version
matters: 1.13 runs the head at answers only, 1.16 on a CPU at every position, and 1.15 does not run on a CPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig
from step_waste import accumulated, read
from transformers import PrinterCallback, TrainerCallback

from mft_ray.data.encoding import IGNORED
from mft_ray.masking import Masks, MaskSettings, select
from mft_ray.models.loading import load_model, load_tokenizer
from mft_ray.training.cache import Split
from mft_ray.training.step.answer_loss import AnswerLoss
from mft_ray.training.step.batches import TOKENS_AT_ONCE, global_batch, micro_batches
from mft_ray.training.step.forms import Form
from mft_ray.training.step.prefix import Prefix, frozen_layers
from mft_ray.training.step.states import StateCache

EXAMPLES, STEPS, LR, RANK = 32, 2, 1e-5, 64
# Of SFTConfig: examples of a micro-batch, micro-batches of a step at most, and what else.
SETTINGS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "4 x 8": (4, 8, {}),
    "packed to 512": (1, EXAMPLES, {"packing": True, "max_length": 512}),
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
        return load_model(self.model, "float32").train()

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


Way = Callable[[Work], Taken]


def our_step(work: Work, model: Any, loss: AnswerLoss, pad_id: int, prefix: Prefix | None) -> float:
    """Leave a step's gradients in the model and return its loss."""
    batches = micro_batches(work.indices, work.split.lengths, TOKENS_AT_ONCE["cpu"], 0, 1)
    return accumulated(model, work.split, batches, pad_id, loss, Form.PADDED, prefix)[0]


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
        prefix = Prefix(model, frozen_layers(model), states, (states.mine,), "float32")
        began = time.monotonic()
        losses.append(our_step(work, model, loss, pad_id, prefix))
        optimizer.step()
        optimizer.zero_grad()
        masks.update(1.0)
        seconds = time.monotonic() - began
    return Taken(seconds, sum(losses) / STEPS)


def adamw(parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimizer that TRL is told to use, too."""
    return torch.optim.AdamW(parameters, lr=LR, weight_decay=0.0, fused=True)


class Clock(TrainerCallback):
    """Notes when steps end."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note it."""
        self.ends.append(time.monotonic())


def trl(work: Work, setting: str, trained: str) -> Taken:
    """Train with TRL. An epoch is a step, and a step lasts from the end of the one before.

    Args:
        work: what a step is over.
        setting: one of `SETTINGS`.
        trained: ``all`` weights, the layer ``group``'s, or ``lora`` on these.
    """
    from trl import SFTConfig, SFTTrainer  # type: ignore[import-not-found]

    model, at_once, clock = work.load(), SETTINGS[setting], Clock()
    chosen = select(model, work.layers)
    if trained == "group":
        model.requires_grad_(False)
        for weight in chosen:
            model.get_parameter(weight.name).requires_grad_(True)
    lora = LoraConfig(r=RANK, target_modules=[weight.module for weight in chosen], task_type="CAUSAL_LM")
    with tempfile.TemporaryDirectory() as scratch:
        settings = SFTConfig(
            output_dir=scratch,
            num_train_epochs=STEPS,
            per_device_train_batch_size=at_once[0],
            gradient_accumulation_steps=at_once[1],
            **at_once[2],
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
        )
        trainer = SFTTrainer(
            model,
            settings,
            train_dataset=examples(work),
            processing_class=load_tokenizer(work.model),
            callbacks=[clock],
            peft_config=lora if trained == "lora" else None,
        )
        trainer.remove_callback(PrinterCallback)
        loss = trainer.train().training_loss
    assert len(clock.ends) == STEPS, "an epoch is not one step"
    return Taken(clock.ends[-1] - clock.ends[-2], loss)


def examples(work: Work) -> datasets.Dataset:
    """Return a step's examples as TRL takes them, with the same answers."""
    rows = [work.split.rows[index] for index in work.indices]
    tokens = [list(row["input_ids"]) for row in rows]
    answers = [[int(label != IGNORED) for label in row["labels"]] for row in rows]
    return datasets.Dataset.from_dict({"input_ids": tokens, "completion_mask": answers})


def ways(layers: str) -> dict[str, dict[str, Way]]:
    """Return what trains, by what is trained; ours first."""
    every: dict[str, Way] = {"ours": fft}
    group: dict[str, Way] = {
        "ours, mask, first epoch": partial(mask, later=False),
        "ours, mask, later": partial(mask, later=True),
    }
    for setting in SETTINGS:
        every[f"TRL, {setting}"] = partial(trl, setting=setting, trained="all")
        group[f"TRL, same weights, {setting}"] = partial(trl, setting=setting, trained="group")
        group[f"TRL, LoRA, {setting}"] = partial(trl, setting=setting, trained="lora")
    return {"every weight": every, f"layers {layers}": group}


def measure(work: Work, rounds: int) -> dict[str, dict[str, Taken]]:
    """Return the fastest step of each."""
    found: dict[str, dict[str, Taken]] = {}
    for _ in range(rounds):
        for trained, by in ways(work.layers).items():
            best = found.setdefault(trained, {})
            for name, way in by.items():
                taken = way(work)
                best[name] = min(best.get(name, taken), taken, key=lambda each: each.seconds)
                print(f"{trained}, {name}: {taken.seconds:.2f} s", file=sys.stderr, flush=True)
    return found


def table(found: dict[str, dict[str, Taken]], tokens: int) -> str:
    """Return what was found as Markdown, with what each of ours is over each of TRL's."""
    lines = ["| trained | by | tokens/s | s/step | loss | ours is faster by |", "| --- | --- | --- | --- | --- | --- |"]
    for trained, by in found.items():
        ours = [taken.seconds for name, taken in by.items() if name.startswith("ours")]
        for name, taken in by.items():
            ratios = "" if name.startswith("ours") else " / ".join(f"{taken.seconds / each:.2f}" for each in ours)
            speed = f"{tokens / taken.seconds:,.0f} | {taken.seconds:.2f}"
            lines.append(f"| {trained} | {name} | {speed} | {taken.loss:.4f} | {ratios} |")
    return "\n".join(lines)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", required=True, help="folder of the model")
    arguments.add_argument("--train", type=Path, required=True, help="GSM8K's training file")
    arguments.add_argument("--layers", default="26-29")
    arguments.add_argument("--rounds", type=int, default=2)
    arguments.add_argument("--out", type=Path)
    options = arguments.parse_args()
    if importlib.util.find_spec("trl") is None:
        print("error: this compares with TRL, which is not here: pip install trl==1.13.0", file=sys.stderr)
        sys.exit(2)
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as scratch:
        split, _ = read(options, load_model(options.model, "float32"), scratch)
        work = Work(options.model, options.layers, split, global_batch(0, EXAMPLES, len(split.rows), 0))
        found = measure(work, options.rounds)
    versions = {name: version(name) for name in ("trl", "peft", "transformers", "torch")}
    told = ", ".join(f"{name} {number}" for name, number in versions.items())
    print(f"\n{EXAMPLES} examples, {work.tokens():,} tokens a step, best of {options.rounds}; {told}\n")
    print(table(found, work.tokens()))
    if options.out:
        steps = {trained: {name: asdict(taken) for name, taken in by.items()} for trained, by in found.items()}
        options.out.write_text(
            json.dumps({"versions": versions, "tokens": work.tokens(), "steps": steps}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
