"""Memory that training takes on a worker's device, part by part: what stays from step to step, and what comes and goes.

Where each number is from: DeepSpeed's own code for what it copies, buckets and gathers; `benchmarks/plan_accuracy.py`
holds all of it against measured peaks.
"""

from __future__ import annotations

from dataclasses import dataclass

from mft_ray.config import ScalingConfig

_FLOAT = 4
# DeepSpeed's defaults, in numbers: reduce_bucket_size, and stage3_max_live_parameters.
_BUCKET, _LIVE = 5 * 10**8, 10**9


@dataclass(frozen=True)
class Packed:
    """Weights of a model that are held in fewer bits than the others, in numbers.

    Attributes:
        numbers: how many.
        each: bytes of one of them, its share of a scale included.
        unpacked: bytes of the largest of them while it is used.
    """

    numbers: int = 0
    each: float = 0.0
    unpacked: float = 0.0


@dataclass(frozen=True)
class Weights:
    """Weights of a model that a job holds, and those that it trains, in numbers.

    Attributes:
        model: of the model.
        each: bytes of one of them.
        trained: numbers that the optimizer changes: all of the model's, scores, or an adapter's.
        added: whether those are not the model's own.
        masked: whether they are scores of a mask.
        effective: bytes of each number of W * M that is kept between updates; 0 where it is not kept.
        origin: bytes of each that a removed weight becomes, where that is not 0.
        states: bytes that the optimizer keeps for each.
        width: bytes of each number that is trained, and of its gradient.
        head: numbers of the output head, where it is trained: the first gradient of a backward pass, and the largest.
        packed: those that are held in fewer bits.
    """

    model: int
    each: int
    trained: int
    added: bool
    masked: bool = False
    effective: int = 0
    origin: int = 0
    states: float = 8
    width: int = _FLOAT
    head: int = 0
    packed: Packed = Packed()

    @property
    def bytes(self) -> float:
        """Bytes of the model as it is held for training, where it is whole."""
        return (self.model - self.packed.numbers) * self.each + self.packed.numbers * self.packed.each


@dataclass(frozen=True)
class Parts:
    """Bytes on a worker's device, by what they are for, where a step takes the most.

    Attributes:
        weights: the model, or this worker's share of it under ZeRO-3.
        scores: scores or adapter, mask, and W * M where that is kept.
        gradients: of what is trained.
        optimizer: states of the optimizer, and from ZeRO-1 on fp32 copies of what it changes.
        gathered: weights that ZeRO-3 has whole for a while, and W * M that lives through a forward and backward pass.
        unpacked: one that is held in fewer bits, while it is used.
        buckets: in which gradients are reduced.
        activations: what the backward pass needs.
        logits: logits, their gradient, and a copy of the piece at work.
    """

    weights: float = 0.0
    scores: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    gathered: float = 0.0
    unpacked: float = 0.0
    buckets: float = 0.0
    activations: float = 0.0
    logits: float = 0.0

    @property
    def total(self) -> float:
        """All together."""
        return float(sum(vars(self).values()))


def of_training(
    weights: Weights,
    scaling: ScalingConfig,
    activations: float,
    logits: float,
    *,
    accumulates: bool,
    gpu: bool,
    steps: bool = True,
) -> Parts:
    """Return what training takes at its peak.

    That is at the end of a forward pass, or when gradients are reduced: activations are gone by then.

    Args:
        weights: what is held and trained.
        scaling: ZeRO stage and workers.
        activations: bytes that the backward pass of a micro-batch needs.
        logits: bytes of the logits of a micro-batch.
        accumulates: whether a step has several micro-batches, so that gradients are there in a forward pass.
        gpu: whether buckets take their place before they are filled. On a CPU untouched memory takes none.
        steps: whether anything is trained at all.
    """
    stage, share = scaling.zero_stage, 1 / scaling.workers
    sharded = share if stage == 3 else 1.0
    trained = float(weights.width * weights.trained)
    held = Parts(
        weights=weights.bytes * sharded,
        scores=weights.trained * _own(weights, sharded),
        unpacked=weights.packed.unpacked,
        activations=activations,
        logits=logits,
    )
    if not steps:
        return held
    copies = _FLOAT * share if stage else 0.0
    states = weights.states * (share if stage else 1.0)
    if gpu and scaling.offload == "cpu":  # the host has them; on a CPU that is the device
        copies = states = 0.0
    bucket = weights.width * float(_BUCKET if gpu and stage else min(_BUCKET, weights.trained))
    # Stage 0 copies gradients into one tensor where there is somebody to add them up with.
    bucket = bucket if stage or scaling.workers > 1 else 0.0
    forward, reducing = _passing(stage, share, trained, accumulates)
    # While all activations are there: logits, or their gradient with the head's own, which ZeRO-2 puts in its bucket.
    head = weights.width * weights.head * (2.0 if stage == 2 else 1.0)
    if head + logits / 3 > logits:
        forward, logits = forward + head, logits / 3
    gathered = _gathered(weights, scaling, whole=1 - share)
    pressed = activations + logits + gathered
    always = bucket if stage == 3 or (gpu and stage) else 0.0
    if forward + pressed + always >= reducing + bucket:
        gradients, buckets = forward, always
    else:
        gradients, buckets, pressed = reducing, bucket, 0.0
    return Parts(
        weights=held.weights,
        scores=held.scores,
        gradients=gradients,
        optimizer=weights.trained * (copies + states),
        gathered=gathered if pressed else 0.0,
        unpacked=held.unpacked,
        buckets=buckets,
        activations=activations if pressed else 0.0,
        logits=logits if pressed else 0.0,
    )


def _own(weights: Weights, sharded: float) -> float:
    """Return the bytes of each trained number that is not the model's, gradient and optimizer left out."""
    if not weights.added:
        return 0.0
    mask = 1 if weights.masked else 0
    return weights.width * sharded + mask + weights.effective + weights.origin


def _passing(stage: int, share: float, trained: float, accumulates: bool) -> tuple[float, float]:
    """Return the bytes of gradients at the end of a forward pass, and when they are reduced.

    Args:
        stage: ZeRO stage.
        share: of one worker.
        trained: bytes of gradients of all that is trained.
        accumulates: whether a step has several micro-batches.
    """
    if stage == 3:  # one flat tensor of its share, for good
        return trained * share, trained * share
    if stage == 2:
        return (trained * share if accumulates else 0.0), trained * share
    return (trained if accumulates else 0.0), trained


def _gathered(weights: Weights, scaling: ScalingConfig, whole: float) -> float:
    """Return the bytes of what others hold of weights in use under ZeRO-3, and of W * M where each forward makes it."""
    passing = weights.each * weights.trained if weights.masked and not weights.effective else 0.0
    if scaling.zero_stage < 3:
        return float(passing)
    numbers = weights.model + (weights.trained if weights.added else 0)
    mean = (weights.model * weights.each + (_FLOAT * weights.trained if weights.added else 0)) / numbers
    return passing + (min(_LIVE, numbers) * mean if whole else 0.0)
