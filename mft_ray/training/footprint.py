"""How much memory a job takes on a worker, estimated before it takes any, and the batches that fit.

What stays from step to step is `mft_ray.training.parts`. For each token of a micro-batch, padding included, comes what
the backward pass needs: counted (`mft_ray.training.counted`), or else 1.8 numbers for each input and output of every
linear layer from the lowest trained one up; with gradient checkpointing two hidden states a layer, and one layer whole;
and attention weights where these are stored. A job that begins has no seconds for counting, and takes the latter.

Logits exist in pieces of a bounded size, but for ZeRO-3 and for models that do not tell their decoder.

Scoring holds one layer's numbers at a time and three copies of the logits of answers; where it generates, the keys and
values of all layers.

Measured (SmolLM2-135M, CPU, fp32, 512 tokens): training 2.0 MB a token (by the widths 3.0), scoring half the positions
0.26 MB (here 0.65). What does not fit nonetheless is tried again with smaller batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from mft_ray.config import EvaluationConfig
from mft_ray.masking import maskable, select
from mft_ray.models.quantized import bytes_of, code_bytes, numbers_of, shape_of
from mft_ray.training import memory
from mft_ray.training.job import GenerateJob, ScoreJob, Sizes, TrainJob
from mft_ray.training.parts import Packed, Weights, of_training
from mft_ray.training.step.answer_loss import logits_at_once
from mft_ray.training.step.batches import TOKENS_AT_ONCE
from mft_ray.training.step.head import Head
from mft_ray.training.step.optimizers import state_bytes, trained_bytes
from mft_ray.training.step.unselected import held_in_fewer_bits

# Told what sizes a job works with, before it does.
Sized = Callable[[Sizes], object]

_FLOAT = 4
_SAVED = 1.8
_LOGITS = 3


@dataclass(frozen=True)
class Shape:
    """What of a model decides how much memory a token takes, in numbers.

    Attributes:
        layers: inputs and outputs of the linear layers of each decoder layer.
        hidden: size of a hidden state.
        vocabulary: size of the logits.
        heads: attention heads whose weights are stored, token by token; 0 where none are.
        pieces: whether no more logits exist at once than the loss wants.
        kept: bytes that each layer keeps of a token for the backward pass, and last those outside of all layers; empty
            where nobody has counted them.
    """

    layers: tuple[int, ...]
    hidden: int
    vocabulary: int
    heads: int = 0
    pieces: bool = False
    kept: tuple[float, ...] = ()

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
            shape = shape_of(model, weight)
            width = sum(shape[-2:]) * (used if len(shape) > 2 else 1)
            widths[weight.layer or 0] = widths.get(weight.layer or 0, 0) + width
        eager = getattr(config, "_attn_implementation", None) == "eager"
        embeddings = model.get_input_embeddings().weight  # type: ignore[operator, union-attr]
        vocabulary = int(getattr(config, "vocab_size", embeddings.shape[0]))
        layers = tuple(widths[layer] for layer in sorted(widths)) or (0,)
        heads = int(getattr(config, "num_attention_heads", 0)) if eager else 0
        return cls(layers, int(embeddings.shape[1]), vocabulary, heads, Head.known(model))

    def training(self, tokens: int, lowest: int = 0, checkpointing: bool = False) -> float:
        """Return the bytes that an example takes in a forward and backward pass.

        Args:
            tokens: tokens of the example.
            lowest: decoder layer below which nothing is trained.
            checkpointing: whether what a layer needs is computed anew in the backward pass.
        """
        widths = self.layers[lowest:]
        kept = self.kept[lowest:-1] if self.kept else [_FLOAT * _SAVED * width for width in widths]
        layers = [each + _FLOAT * 3 * self.heads * tokens for each in kept]
        outside = self.kept[-1] if self.kept else 0.0
        if not checkpointing:
            return tokens * (sum(layers) + outside)
        return tokens * (_FLOAT * 2 * self.hidden * len(self.layers) + max(layers) + outside)

    def logits(self, answers: int, device: str, whole: bool, each: int = _FLOAT) -> float:
        """Return the bytes of logits in training: they, their gradient, and an fp32 copy of a piece of them.

        Args:
            answers: positions of a micro-batch that have logits.
            device: device of the worker.
            whole: whether the model's weights are whole at any time, as ZeRO-3 has them not.
            each: bytes of a logit.
        """
        wanted, most = float(answers * self.vocabulary), float(logits_at_once(device))
        there = min(wanted, most) if whole and self.pieces else wanted
        return 2 * each * there + _FLOAT * min(there, most)

    def scoring(self, tokens: int, generated: int = 0, answers: int | None = None) -> float:
        """Return the bytes that an example takes in scoring.

        Args:
            tokens: tokens of the example, or of the prompt that is to be continued.
            generated: tokens that may follow.
            answers: tokens of it that are an answer's; None: any may be.
        """
        layer = tokens * (max(self.layers) + 3 * self.heads * tokens)
        if generated:
            cache = 2 * 2 * self.hidden * len(self.layers) * (tokens + generated)
            return _FLOAT * (layer + cache + _LOGITS * self.vocabulary)
        return _FLOAT * (layer + (tokens if answers is None else answers) * _LOGITS * self.vocabulary)


@dataclass(frozen=True)
class Trained:
    """What a job trains of a model.

    Attributes:
        weights: those that it holds and trains.
        lowest: decoder layer of the first that is trained.
    """

    weights: Weights
    lowest: int = 0

    @classmethod
    def by(cls, job: TrainJob, model: nn.Module) -> Trained:
        """Return what of a model a job will train."""
        count = numbers_of(model)
        states, width, asked = state_bytes(job.train), trained_bytes(job.train), job.mask or job.lora
        if asked is None:  # whatever the checkpoint has
            output: Any = getattr(model, "get_output_embeddings", lambda: None)()
            head = 0 if output is None else output.weight.numel()
            return cls(Weights(count, width, count, added=False, states=states, width=width, head=head))
        held = 2 if job.dtype == "bfloat16" else _FLOAT
        selected = select(model, asked.layers, asked.target)
        lowest = min(weight.layer or 0 for weight in selected)
        shapes = [shape_of(model, weight) for weight in selected]
        packed = _packed(job, model)
        if job.lora is not None:
            numbers = sum(job.lora.rank * sum(shape) for shape in shapes)
            return cls(Weights(count, held, numbers, added=True, states=states, width=width, packed=packed), lowest)
        effective = (2 if job.scaling.compute == "bfloat16" else held) if job.keeps_effective else 0
        # Where the mask takes back the fine-tuning, the weights before that.
        origin = held if job.mask is not None and job.mask.removes == "delta" else 0
        numbers = sum(shape.numel() for shape in shapes)
        return cls(Weights(count, held, numbers, True, True, effective, origin, states, width, packed=packed), lowest)

    def bytes(self, job: TrainJob, device: str, held: float) -> float:
        """Return what training takes beside the model as it was loaded, whatever the micro-batch.

        Args:
            job: what to train.
            device: device of the worker.
            held: bytes of the model as it was loaded.
        """
        parts = of_training(
            self.weights,
            job.scaling,
            activations=0.0,
            logits=0.0,
            accumulates=job.accumulates,
            gpu=device == "cuda",
            steps=job.train.steps > 0,
        )
        # FFT makes fp32 of them, or what train.dtype says; under ZeRO-3 what is whole at the beginning makes room.
        weights = parts.weights + (parts.gathered if job.scaling.zero_stage == 3 else 0.0)
        return replace(parts, weights=0.0, gathered=0.0).total + max(0.0, weights - held)


def _packed(job: TrainJob, model: nn.Module) -> Packed:
    """Return what of a model a job holds in fewer bits."""
    found = held_in_fewer_bits(job, model)
    if found is None or job.unselected_dtype is None:
        return Packed()
    unpacked = 2 if job.dtype == "bfloat16" or job.scaling.compute == "bfloat16" else _FLOAT
    return Packed(found.numbers, code_bytes(job.unselected_dtype), found.largest * unpacked)


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
    train, shape, longest = job.train, Shape.of(model), max(lengths)
    room = _agreed(lambda: memory.available(device, job.scaling), device)
    held = bytes_of(model)
    tokens, paying, fixed, each = micro_batch(shape, Trained.by(job, model), job, longest, room, held, device.type)
    generated = _generated(job.evaluation, job.evaluation.metric, job.evaluation.monitor)
    scoring = _scoring(shape, scored, generated, room - fixed, train.eval_batch_size)
    sizes = Sizes(max(longest, tokens), scoring, longest).within(limit)
    if train.micro_batch_tokens or tokens >= paying:
        return sizes, ""
    return sizes, (
        f"micro-batches of {sizes.training:,} tokens: of {_gb(room)} that a worker may take, what is trained needs "
        f"{_gb(fixed)}, and an example of {longest:,} tokens, the longest, {_gb(each)}"
    )


def micro_batch(
    shape: Shape, trained: Trained, job: TrainJob, longest: int, room: float, held: float, device: str
) -> tuple[int, int, float, float]:
    """Return how many tokens a micro-batch of a job is given where it has so much room.

    Args:
        shape: of the model.
        trained: what is trained of it.
        job: what to train.
        longest: tokens of the longest example.
        room: bytes that the worker may take beside the model as it was loaded.
        held: bytes of that.
        device: device of the worker.

    Returns:
        Tokens; as many as would pay; bytes that are taken whatever the micro-batch; bytes of the longest example.
    """
    whole = job.scaling.zero_stage < 3
    paying = min(TOKENS_AT_ONCE[device], job.train.batch_size // job.scaling.workers * longest)
    fixed = trained.bytes(job, device, held)
    each = shape.training(longest, trained.lowest, job.scaling.gradient_checkpointing)
    # As many positions as there are tokens may be an answer's.
    if whole and shape.pieces:
        fixed += shape.logits(max(longest, paying), device, whole)
    else:
        each += shape.logits(longest, device, whole)
    return job.train.micro_batch_tokens or min(paying, int((room - fixed) * longest / each)), paying, fixed, each


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
