"""What one training run is told, and what it leaves behind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from mft_ray.config import EvaluationConfig, LoraConfig, ScalingConfig, TrainConfig
from mft_ray.config.training import UnselectedDtype
from mft_ray.masking import MaskSettings
from mft_ray.utils.files import Damaged, read_json, write_json
from mft_ray.utils.json_types import JsonObject


@dataclass(frozen=True)
class TrainJob:
    """One run of the training loop. Every path is seen by every worker.

    Attributes:
        method: what it is called; ``mask`` and ``lora`` say what is trained.
        model: folder of the model to start from.
        data: folder of the prepared splits.
        out: folder for this run's checkpoints, best model or mask, and outcome.
        mask: a mask whose scores are trained, or only cut; with neither this nor ``lora`` every weight is trained.
        lora: an adapter that is trained.
        unselected_dtype: how linear weights outside the selection of a mask or an adapter are held; None: as others.
        backbone: the model's fingerprint, written into the mask file.
        pretrained: folder or hub id of the model before fine-tuning, for a mask that removes the delta.
        reference_scores: file with the validation scores, one per example, that this run's are compared with.
        accumulates: whether a global batch may take a worker several micro-batches, with the same weights.
        decides: whether the best state is scored by the deciding metric too, where that is another than is watched, and
            its scores of single examples are kept.
    """

    method: str
    model: str
    data: str
    out: str
    train: TrainConfig
    evaluation: EvaluationConfig
    scaling: ScalingConfig
    dtype: str = "float32"
    unselected_dtype: UnselectedDtype | None = None
    attention: str | None = None
    mask: MaskSettings | None = None
    lora: LoraConfig | None = None
    backbone: str = ""
    pretrained: str | None = None
    reference_scores: str | None = None
    accumulates: bool = True
    decides: bool = True

    def __post_init__(self) -> None:
        """Refuse a job that would train two things, or that is of unknown length."""
        if self.mask is not None and self.lora is not None:
            raise ValueError("a job trains a mask or an adapter, not both")
        if self.train.epochs is not None:
            raise ValueError("epochs must have been turned into steps: runs.prepare.in_steps")
        if self.unselected_dtype is not None and not self.frozen:
            raise ValueError("every weight is trained: there are none outside a selection")

    @property
    def frozen(self) -> bool:
        """Whether the model's own weights stay as they are."""
        return self.mask is not None or self.lora is not None

    @property
    def keeps_effective(self) -> bool:
        """Whether W * M is kept between updates, so that several micro-batches can share one.

        But ZeRO-3 shards W after every use, and who checkpoints is short of memory: no second copy of W then.
        """
        return self.accumulates and self.scaling.zero_stage < 3 and not self.scaling.gradient_checkpointing


@dataclass(frozen=True)
class ScoreJob:
    """Scoring of one model on one split, by all workers of a group together. Every path is seen by every worker.

    Attributes:
        model: folder or hub id.
        data: folder of the prepared splits.
        split: ``validation`` or ``test``.
        metric: one of `mft_ray.evaluation.metrics`.
        limit: the first so many examples; None takes all.
        artifact: mask file or adapter folder to put on the model.
        pretrained: folder or hub id of the model before fine-tuning, for a mask that removes the delta.
        batch_size: examples per forward and worker at most.
    """

    model: str
    data: str
    split: str
    metric: str
    evaluation: EvaluationConfig
    scaling: ScalingConfig
    batch_size: int
    limit: int | None = None
    artifact: str | None = None
    pretrained: str | None = None
    dtype: str = "float32"
    attention: str | None = None


@dataclass(frozen=True)
class GenerateJob(ScoreJob):
    """Greedy answers to some examples of a split, by all workers of a group together.

    Attributes:
        examples: their places in the split.
    """

    examples: tuple[int, ...] = ()


Job = TrainJob | ScoreJob


@dataclass(frozen=True)
class Scores:
    """What came of a `ScoreJob`.

    Attributes:
        values: one per example, in the split's order.
    """

    values: list[float]


@dataclass(frozen=True)
class Texts:
    """What came of a `GenerateJob`.

    Attributes:
        values: one text per example, in the order asked for.
    """

    values: list[str]


@dataclass(frozen=True)
class Counted:
    """How far the first worker is with its share of a `ScoreJob`, in examples.

    Attributes:
        note: what else there is to say.
    """

    done: int
    total: int
    note: str = ""


@dataclass(frozen=True)
class Sizes:
    """How much goes through a worker's model at once; less memory is needed by less.

    Attributes:
        training: tokens in a forward and backward pass, the micro-batch.
        scoring: examples in a forward pass that no backward one follows.
        longest: tokens of the longest example: a micro-batch has no fewer.
    """

    training: int
    scoring: int
    longest: int = 1

    def smaller(self) -> Sizes | None:
        """Return what to try where these were too many; None if nothing is left to try."""
        # Which of the two was too many is not always known, and scoring needs far less for each.
        tried = replace(self, training=max(self.longest, self.training // 2), scoring=max(1, self.scoring // 4))
        return None if tried == self else tried

    def within(self, limit: Sizes | None) -> Sizes:
        """Return the same, but no more than a limit."""
        if limit is None:
            return self
        training = max(self.longest, min(self.training, limit.training))
        return replace(self, training=training, scoring=min(self.scoring, limit.scoring))


class StopReason(StrEnum):
    """Why a run ended, as ``stopped_reason`` in every file says it.

    Attributes:
        COMPLETED: its steps, or its tokens, were used up.
        BELOW_FFT: it would surely have ended below FFT.
        PLATEAU: it no longer improved.
        TARGET: it was ahead of FFT by as much as was asked for.
        PRUNED: Tune ended it.
        FAILED: it raised an error, or its process died more often than it may.
        CANCELLED: the budget was spent, or a person ended the search.
        GIVEN: it was never trained here: a fine-tuned model was given.
    """

    COMPLETED = "completed"
    BELOW_FFT = "below_fft"
    PLATEAU = "plateau"
    TARGET = "target"
    PRUNED = "pruned"
    FAILED = "failed"
    CANCELLED = "cancelled"
    GIVEN = "given"


@dataclass(frozen=True)
class Restart:
    """A worker of a job has failed, for this reason; the group is started anew and goes on from a checkpoint."""

    reason: str


@dataclass(frozen=True)
class Left:
    """A job was left at a step, of which there is a checkpoint, and is to go on elsewhere."""

    step: int


@dataclass(frozen=True)
class Evaluation:
    """The state of a run at one evaluation on validation.

    Attributes:
        step: optimizer steps done.
        score: the metric on validation, higher is better.
        standard_error: standard error of the score, over examples.
        tokens: input tokens trained on so far, padding excluded.
        seconds: seconds of training and evaluation so far.
        loss: mean training loss per answer token since the last evaluation; NaN at step 0.
        ratio: masking ratio in force (0 for ``fft``).
        eligible: whether this state may be the run's best (not while a ratio is still annealed).
        delta: score minus the rival's on the same examples; NaN without a rival.
        delta_error: standard error of delta, over examples.
        flops: floating-point operations of training so far, over all workers, see `mft_ray.training.step.flops`.
        memory: bytes at the peak so far, of the worker that had the most.
        note: what else there is to say at this point.
    """

    step: int
    score: float
    standard_error: float
    tokens: int
    seconds: float
    loss: float
    ratio: float
    eligible: bool
    delta: float = math.nan
    delta_error: float = math.nan
    flops: float = 0.0
    memory: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class Cost:
    """What a run cost, counted alike for every method.

    Attributes:
        tokens: input tokens trained on, padding excluded.
        flops: as described in `mft_ray.training.step.flops`.
        seconds: seconds of training and its evaluations.
        memory: bytes at the peak, of the worker that had the most: of the GPU, or else of the process.
        trainable: parameters that were trained.
        artifact_bytes: size on disk of what it leaves.
    """

    tokens: int
    flops: float
    seconds: float
    memory: float
    trainable: int
    artifact_bytes: int


@dataclass(frozen=True)
class Stop:
    """A rule's decision that a run ends, and the numbers behind it.

    Attributes:
        reason: why it ends.
        step: step of the evaluation after which it was decided.
        total_steps: steps that the run would have had.
        value: what was compared: for ``below_fft`` the larger of ``best`` and ``projected``, for ``target`` the last
            difference to the rival, for ``plateau`` the best score of the last evaluations.
        limit: what it was compared with: no difference, the difference that was asked for, or the best score before.
        noise: how far off the value may be by chance, which was allowed for.
        confidence: confidence that the noise is of; None where it is one standard error.
        best: the best difference to the rival so far.
        projected: the difference at the last step, if the run went on as between its last two evaluations.
        evaluations: number of evaluations that were to bring progress.
    """

    reason: StopReason
    step: int
    total_steps: int
    value: float
    limit: float
    noise: float
    confidence: float | None = None
    best: float | None = None
    projected: float | None = None
    evaluations: int | None = None


class StopRule(Protocol):
    """Decides after each evaluation whether a run goes on. Picklable, and the same on every worker."""

    def __call__(self, history: Sequence[Evaluation], total_steps: int) -> Stop | None:
        """Return why the run ends, or None to go on."""


@dataclass
class Outcome:
    """What a finished run says of itself.

    Attributes:
        stopped_reason: why it ended.
        best: index into history of the best eligible evaluation; None if there was none.
        score: score of that state by ``evaluation.metric``; None if there is no such state, or it has only been scored
            by the metric that is monitored while training.
        whole: score of that state by the metric that is monitored while training, on the checkpoint as it is, where
            weights outside the selection were held in fewer bits meanwhile; None elsewhere.
        cost: cost of the whole run.
        stop: decision of the rule that ended it; None where no rule did.
    """

    stopped_reason: StopReason
    history: list[Evaluation] = field(default_factory=list)
    best: int | None = None
    score: float | None = None
    cost: Cost | None = None
    stop: Stop | None = None
    whole: float | None = None

    def decided(self, job: TrainJob) -> bool:
        """Whether the best state is scored by the metric that decides, where that is another than is monitored.

        Args:
            job: that it came of.
        """
        return job.decides and self.stopped_reason not in (StopReason.BELOW_FFT, StopReason.CANCELLED)

    @property
    def watched(self) -> float | None:
        """Score of the best state by the metric that is monitored while training: ``whole``, where there is that."""
        best = self.best_evaluation
        return self.whole if self.whole is not None or best is None else best.score

    @property
    def best_evaluation(self) -> Evaluation | None:
        """The best eligible evaluation."""
        return None if self.best is None else self.history[self.best]

    def save(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Outcome:
        """Read what `save` wrote.

        Raises:
            Damaged: it is not that.
        """
        return read_json(path, cls._read)

    @classmethod
    def _read(cls, content: Any) -> Outcome:
        cost, stop = content.get("cost"), content.get("stop")  # runs of earlier versions have neither
        outcome = cls(
            StopReason(content["stopped_reason"]),
            read_history(content["history"]),
            content["best"],
            content["score"],
            Cost(**cost) if cost else None,
            Stop(**{**stop, "reason": StopReason(stop["reason"])}) if stop else None,
            content.get("whole"),
        )
        # Every run that ended was evaluated at least once, and its best is among that.
        outcome.history[-1 if outcome.best is None else outcome.best]
        return outcome


def best_index(history: Sequence[Evaluation]) -> int | None:
    """Return the position of the best eligible evaluation, the earliest of equals; None if there is none."""
    eligible = [index for index, evaluation in enumerate(history) if evaluation.eligible]
    return max(eligible, key=lambda index: history[index].score, default=None)


def read_step(folder: Path) -> int | None:
    """Return the step of the last evaluation that the workers of a run have written down; None if there is none.

    Args:
        folder: the run's ``out``.
    """
    try:
        return read_json(folder / "progress.json", lambda content: int(content["step"]))
    except (FileNotFoundError, Damaged):
        return None


def read_progress(folder: Path) -> list[Evaluation]:
    """Return the evaluations so far of a run that goes on; none before the first, or from an earlier version.

    Args:
        folder: the run's ``out``.
    """
    try:
        return read_json(folder / "progress.json", lambda content: read_history(content.get("history", [])))
    except (FileNotFoundError, Damaged):
        return []


def read_history(rows: Sequence[JsonObject]) -> list[Evaluation]:
    """Read evaluations from JSON rows."""
    return [Evaluation(**_with_nan(row)) for row in rows]


def _with_nan(row: JsonObject) -> JsonObject:
    return {name: math.nan if value is None else value for name, value in row.items()}
