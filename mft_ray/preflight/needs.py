"""What one training job will take: memory of a worker's device by part, and operations, before it is started."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from mft_ray.masking import select
from mft_ray.models.loading import DTYPES
from mft_ray.training import memory
from mft_ray.training.compute import autocast_dtype
from mft_ray.training.counted import Counted, Counter
from mft_ray.training.footprint import Shape, Trained, micro_batch
from mft_ray.training.job import TrainJob
from mft_ray.training.parts import Parts, Weights, of_training


@dataclass(frozen=True)
class Lengths:
    """Lengths of examples, in tokens.

    Attributes:
        mean: of an example.
        longest: of the longest.
        answers: mean of those that are learned.
    """

    mean: float
    longest: int
    answers: float


@dataclass(frozen=True)
class Needs:
    """What a training job takes.

    Attributes:
        weights: weights of the model.
        trained: numbers that the optimizer changes.
        packed: weights that are held in fewer bits than the others.
        hidden: size of a hidden state.
        micro_batch: tokens of a micro-batch.
        training: bytes on a worker's device where a step takes the most.
        evaluation: bytes there where an evaluation does.
        judging: bytes there where what was learned is scored on the checkpoint as it is; 0 where that is the same.
        loading: bytes there of the model as it is loaded, which ZeRO-3 shards afterwards; on a CPU it is a mapped file.
        operations: floating-point operations of a training step, over all workers.
        scoring: those of the forward pass over one example.
        counted: whether activations and operations were counted, and not estimated from the widths of layers.
    """

    weights: int
    trained: int
    packed: int
    hidden: int
    micro_batch: int
    training: Parts
    evaluation: float
    judging: float
    loading: float
    operations: float
    scoring: float
    counted: bool

    @property
    def peak(self) -> float:
        """Bytes on a worker's device at the most."""
        return max(self.training.total, self.evaluation, self.judging, self.loading)


def needs_of(
    job: TrainJob, model: nn.Module, lengths: Lengths, device: str, room: float, counter: Counter | None = None
) -> Needs:
    """Work out what a training job takes.

    Args:
        job: the job, its ``scaling.compute`` settled.
        model: structure of its model.
        lengths: of the training examples.
        device: ``cpu`` or ``cuda``.
        room: bytes of a device that the worker may have, up to which a micro-batch is filled that the job leaves open.
        counter: of this model, where several jobs are to be asked about.
    """
    shape, trained = Shape.of(model), Trained.by(job, model)
    held = trained.weights
    whole_model = float(held.model * DTYPES[job.dtype].itemsize)  # FFT makes fp32 of it later
    loaded = held.bytes if held.packed.numbers else whole_model
    left = memory.USABLE * (room - loaded)
    tokens = max(lengths.longest, micro_batch(shape, trained, job, lengths.longest, left, loaded, device)[0])
    share = job.train.batch_size // job.scaling.workers
    # A micro-batch holds whole examples, and no more than there are.
    at_once = min(share, max(1, int(tokens // lengths.mean)))
    job = replace(job, accumulates=share * lengths.longest > tokens)
    trained = Trained.by(job, model)
    its: Any = model.config
    found = _counted(job, model, lengths, counter or Counter(its))
    if found is not None:
        shape = replace(shape, kept=(*found.layers, found.outside))
    whole, checkpointing = job.scaling.zero_stage < 3, job.scaling.gradient_checkpointing
    filled = round(at_once * lengths.mean)
    per_token = shape.training(round(lengths.mean), trained.lowest, checkpointing) / round(lengths.mean)
    # With checkpointing one layer's copies of weights are there at a time.
    casts = found.casts / (len(shape.layers) if checkpointing else 1) if found else 0.0
    casts *= 1 - held.packed.numbers / held.model  # of what is unpacked nothing is kept
    activations = per_token * filled + casts
    width = 2 if autocast_dtype(job.scaling) else held.each
    logits = shape.logits(round(at_once * lengths.answers), device, whole, width)
    parts = of_training(
        trained.weights,
        job.scaling,
        activations,
        logits,
        accumulates=job.accumulates,
        gpu=device == "cuda",
        steps=job.train.steps > 0,
    )
    operations, scoring = _operations(job, shape, trained, lengths, found)
    return Needs(
        held.model,
        held.trained,
        held.packed.numbers,
        shape.hidden,
        tokens,
        parts,
        _evaluation(job, shape, trained, lengths, device),
        _judging(job, shape, held, lengths, whole_model, device) if job.unselected_dtype else 0.0,
        loaded if device == "cuda" else 0.0,
        operations * job.train.batch_size,
        scoring,
        found is not None,
    )


def _counted(job: TrainJob, model: nn.Module, lengths: Lengths, counter: Counter) -> Counted | None:
    asked = job.mask or job.lora
    names = None if asked is None else {weight.name for weight in select(model, asked.layers, asked.target)}
    # FFT holds what it trains in, whatever the checkpoint has.
    dtype = DTYPES[job.dtype if job.frozen else job.train.dtype]
    tokens = max(2, round(lengths.mean))
    answers = max(1, round(lengths.answers))
    return counter.count(names, tokens, answers, dtype=dtype, autocast=autocast_dtype(job.scaling))


def _operations(
    job: TrainJob, shape: Shape, trained: Trained, lengths: Lengths, found: Counted | None
) -> tuple[float, float]:
    """Return the operations of training on one example, and of scoring one."""
    again = 1 if job.scaling.gradient_checkpointing else 0
    if found is not None:
        # A third of the head's are its forward pass.
        return (1 + again) * found.forward + found.backward + found.head, found.forward + found.head / 3
    # Two for each weight that a token meets, forward; as many for its gradient and for that of its input.
    forward = 2.0 * lengths.mean * trained.weights.model
    depth = len(shape.layers)
    return forward * (1 + again + 2 * (depth - trained.lowest) / depth), forward


def _evaluation(job: TrainJob, shape: Shape, trained: Trained, lengths: Lengths, device: str) -> float:
    """Return the bytes on a worker's device while validation examples are scored."""
    stays = of_training(
        trained.weights, job.scaling, 0.0, 0.0, accumulates=False, gpu=device == "cuda", steps=job.train.steps > 0
    )
    buckets = stays.buckets if device == "cuda" else 0.0
    return replace(stays, gradients=0.0, buckets=buckets).total + _passing(job, shape, lengths)


def _judging(job: TrainJob, shape: Shape, held: Weights, lengths: Lengths, whole: float, device: str) -> float:
    """Return the bytes on a worker's device while the checkpoint as it is is scored, with what was learned on it."""
    packed = held.packed.numbers * held.packed.each if device == "cpu" else 0.0  # stays for the next run
    return whole + packed + _passing(job, shape, lengths)


def _passing(job: TrainJob, shape: Shape, lengths: Lengths) -> float:
    """Return the bytes that go through a model while validation examples are scored."""
    generates = "generated_match" in (job.evaluation.metric, job.evaluation.monitor)
    generated = job.evaluation.max_new_tokens if generates else 0
    mean, answers = round(lengths.mean), round(lengths.answers)
    each = max(shape.scoring(mean, answers=answers), shape.scoring(mean, generated) if generates else 0.0)
    return each * job.train.eval_batch_size
