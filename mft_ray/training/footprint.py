"""How much memory a job takes on a worker, estimated before it takes any, and the batches that fit.

A training job holds, beside the model:

- for each trained weight 4 bytes of gradient, 4 or 8 of optimizer state (divided among workers from ZeRO-1 on) and 4 of
  copies made in passing; a mask's or adapter's own numbers as well, and for a mask W * M, kept between micro-batches;
- for each token of a micro-batch, padding included, what the backward pass needs: 1.8 numbers for each
  input and output of every linear layer from the lowest trained one up (with gradient checkpointing: two hidden states
  a layer, and one layer whole), attention weights where these are stored, and five copies of the logits.

Scoring holds one layer's numbers at a time and three copies of the logits of answers; where it generates, the keys and
values of all layers.

Measured (SmolLM2-135M, CPU, fp32, 512 tokens): training 2.0 MB a token (here 3.0), scoring half the positions 0.26 MB
(here 0.65). What does not fit nonetheless is tried again with smaller batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from mft_ray.config import EvaluationConfig
from mft_ray.masking import maskable, select
from mft_ray.training import memory
from mft_ray.training.job import GenerateJob, ScoreJob, Sizes, TrainJob
from mft_ray.training.step.batches import TOKENS_AT_ONCE

# Told what sizes a job works with, before it does.
Sized = Callable[[Sizes], object]

_FLOAT = 4
_SAVED = 1.8
_LOGITS_TRAINING, _LOGITS_SCORING = 5, 3
# What DeepSpeed sets aside on a GPU to reduce gradients in, from ZeRO-1 on.
_BUCKETS = 2 * 5e8 * _FLOAT


@dataclass(frozen=True)
class Shape:
    """What of a model decides how much memory a token takes, in numbers.

    Attributes:
        layers: inputs and outputs of the linear layers of each decoder layer.
        hidden: size of a hidden state.
        vocabulary: size of the logits.
        heads: attention heads whose weights are stored, token by token; 0 where none are.
    """

    layers: tuple[int, ...]
    hidden: int
    vocabulary: int
    heads: int = 0

    @classmethod
    def of(cls, model: nn.Module) -> Shape:
        """Look at a model."""
        config: Any = model.config.get_text_config()  # type: ignore[operator, union-attr]
        used = getattr(config, "num_experts_per_tok", None) or 1
        widths: dict[int, int] = {}
        within = list(maskable(model))
        # The head is counted as logits. A model without a list of decoder layers counts as one layer.
        for weight in [weight for weight in within if weight.layer is not None] or within:
            # Of stacked experts a token meets a few.
            shape = model.get_parameter(weight.name).shape
            width = sum(shape[-2:]) * (used if len(shape) > 2 else 1)
            widths[weight.layer or 0] = widths.get(weight.layer or 0, 0) + width
        eager = getattr(config, "_attn_implementation", None) == "eager"
        embeddings = model.get_input_embeddings().weight  # type: ignore[operator, union-attr]
        vocabulary = int(getattr(config, "vocab_size", embeddings.shape[0]))
        layers = tuple(widths[layer] for layer in sorted(widths)) or (0,)
        heads = int(getattr(config, "num_attention_heads", 0)) if eager else 0
        return cls(layers, int(embeddings.shape[1]), vocabulary, heads)

    def training(self, tokens: int, lowest: int = 0, checkpointing: bool = False) -> float:
        """Return the bytes that an example takes in a forward and backward pass.

        Args:
            tokens: tokens of the example.
            lowest: decoder layer below which nothing is trained.
            checkpointing: whether what a layer needs is computed anew in the backward pass.
        """
        layers = [_SAVED * width + 3 * self.heads * tokens for width in self.layers[lowest:]]
        cache = 2 * self.hidden * len(self.layers) + max(layers) if checkpointing else sum(layers)
        return _FLOAT * tokens * (cache + _LOGITS_TRAINING * self.vocabulary)

    def scoring(self, tokens: int, generated: int = 0) -> float:
        """Return the bytes that an example takes in scoring.

        Args:
            tokens: tokens of the example, or of the prompt that is to be continued.
            generated: tokens that may follow.
        """
        layer = tokens * (max(self.layers) + 3 * self.heads * tokens)
        if generated:
            cache = 2 * 2 * self.hidden * len(self.layers) * (tokens + generated)
            return _FLOAT * (layer + cache + _LOGITS_SCORING * self.vocabulary)
        return _FLOAT * (layer + tokens * _LOGITS_SCORING * self.vocabulary)


@dataclass(frozen=True)
class Trained:
    """What a job trains of a model.

    Attributes:
        weights: how many.
        lowest: decoder layer of the first.
        own: bytes that each holds beside gradient, optimizer state and passing copies.
    """

    weights: int
    lowest: int = 0
    own: int = 0

    @classmethod
    def by(cls, job: TrainJob, model: nn.Module) -> Trained:
        """Return what of a model a job will train."""
        asked = job.mask or job.lora
        if asked is None:
            return cls(sum(parameter.numel() for parameter in model.parameters()))
        weights = select(model, asked.layers, asked.target)
        lowest = min(weight.layer or 0 for weight in weights)
        shapes = [model.get_parameter(weight.name).shape for weight in weights]
        if job.lora is not None:
            return cls(sum(job.lora.rank * sum(shape) for shape in shapes), lowest, _FLOAT)
        # Scores and W * M, and where the mask takes back the fine-tuning, the weights before that.
        delta = job.mask is not None and job.mask.removes == "delta"
        return cls(sum(shape.numel() for shape in shapes), lowest, (3 if delta else 2) * _FLOAT)

    def bytes(self, job: TrainJob, device: str) -> float:
        """Return what training takes whatever the micro-batch."""
        if job.train.steps == 0:
            return float(self.weights * self.own)
        sharded = job.scaling.zero_stage > 0
        states = (1 if job.train.optimizer == "rmsprop" else 2) / (job.scaling.workers if sharded else 1)
        buckets = _BUCKETS if sharded and device == "cuda" else 0.0
        return self.weights * (self.own + _FLOAT * (2 + states)) + buckets


def training_sizes(
    model: nn.Module, job: TrainJob, lengths: list[int], scored: list[int], device: torch.device, limit: Sizes | None
) -> tuple[Sizes, str]:
    """Return the batches that a training job fits in memory with, alike on all workers, and what there is to say.

    What the configuration gives for a micro-batch is taken as it is. Any leads to the same gradient.

    Args:
        model: on its device, with nothing put on it yet.
        job: what to train.
        lengths: tokens of every training example.
        scored: tokens of every validation example, or of its prompt where the metric generates.
        device: device of this worker.
        limit: at most so many, since more were too many.
    """
    train, shape = job.train, Shape.of(model)
    trained = Trained.by(job, model)
    longest, fixed = max(lengths), trained.bytes(job, device.type)
    each = shape.training(longest, trained.lowest, job.scaling.gradient_checkpointing)
    room = _agreed(lambda: memory.available(device, job.scaling), device)
    paying = min(TOKENS_AT_ONCE[device.type], train.batch_size // job.scaling.workers * longest)
    tokens = train.micro_batch_tokens or min(paying, int((room - fixed) * longest / each))
    generated = _generated(job.evaluation, job.evaluation.metric, job.evaluation.monitor)
    scoring = _scoring(shape, scored, generated, room - fixed, train.eval_batch_size)
    sizes = Sizes(max(longest, tokens), scoring, longest).within(limit)
    if train.micro_batch_tokens or tokens >= paying:
        return sizes, ""
    return sizes, (
        f"micro-batches of {sizes.training:,} tokens: of {_gb(room)} that a worker may take, what is trained needs "
        f"{_gb(fixed)}, and an example of {longest:,} tokens, the longest, {_gb(each)}"
    )


def scoring_sizes(
    model: nn.Module, job: ScoreJob, scored: list[int], device: torch.device, limit: Sizes | None
) -> tuple[Sizes, str]:
    """Return the batches that a scoring job fits in memory with. Arguments as of `training_sizes`."""
    room = _agreed(lambda: memory.available(device, job.scaling), device)
    answers = job.evaluation.max_new_tokens if isinstance(job, GenerateJob) else 0
    generated = answers or _generated(job.evaluation, job.metric)
    fitting = _scoring(Shape.of(model), scored, generated, room, job.batch_size)
    sizes = Sizes(1, fitting).within(limit)
    if fitting == job.batch_size or fitting >= len(scored):
        return sizes, ""
    return sizes, (
        f"{fitting} instead of {job.batch_size} examples at once: a worker may take {_gb(room)}, and the longest has "
        f"{max(scored):,} tokens"
    )


def _generated(evaluation: EvaluationConfig, *metrics: str) -> int:
    """Return how many tokens may follow a prompt where one of some metrics generates, else 0."""
    return evaluation.max_new_tokens if "generated_match" in metrics else 0


def _scoring(shape: Shape, tokens: list[int], generated: int, room: float, ceiling: int) -> int:
    longest = max(tokens, default=1)
    # Where training is watched by another metric than the one that generates, there is room for both.
    each = max(shape.scoring(longest), shape.scoring(longest, generated))
    return int(min(ceiling, max(1, room // each)))


def _agreed(measured: Callable[[], float], device: torch.device) -> float:
    """Return the least that any worker measures, once all have come this far."""
    dist.barrier()
    least = torch.tensor(measured(), dtype=torch.float64, device=device)
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    return float(least)


def _gb(size: float) -> str:
    return f"{size / 2**30:.1f} GB"
