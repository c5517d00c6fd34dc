"""The training loop, the same for all methods. It runs on every worker of a group."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from mft_ray.config import Metric
from mft_ray.data.collate import collate
from mft_ray.data.store import TOKENIZER
from mft_ray.evaluation.metrics import Around
from mft_ray.evaluation.statistics import standard_error
from mft_ray.models.artifacts import size_of
from mft_ray.training import memory
from mft_ray.training.cache import Split, WorkerCache
from mft_ray.training.checkpoint import Position, drop_checkpoints, load_checkpoint, save_checkpoint
from mft_ray.training.compute import autocast_dtype, settled
from mft_ray.training.engine import build_engine
from mft_ray.training.footprint import Sized, training_sizes
from mft_ray.training.heartbeat import Alive, unheard
from mft_ray.training.job import (
    Cost,
    Evaluation,
    Left,
    Outcome,
    Sizes,
    Stop,
    StopReason,
    StopRule,
    TrainJob,
    best_index,
)
from mft_ray.training.methods import attach
from mft_ray.training.scoring import keep_scores, score_together, score_whole
from mft_ray.training.step.answer_loss import AnswerLoss
from mft_ray.training.step.batches import global_batch, micro_batches
from mft_ray.training.step.dropout import add_dropout
from mft_ray.training.step.flops import Flops
from mft_ray.training.step.forms import Form, arranged, chosen
from mft_ray.training.step.prefix import Prefix, frozen_layers
from mft_ray.training.step.unselected import held_in_fewer_bits, said_of, selected
from mft_ray.utils.files import write_json
from mft_ray.utils.formatting import unit

# Told of an evaluation; True asks to break off. Alike on all workers.
Report = Callable[[Evaluation], bool]
# Asked after a step whether to leave off there. Alike on all workers.
Leave = Callable[[], bool]

# Training examples that score starts which look at activations are measured on.
_CALIBRATION = 32
# Training examples of which two, of different lengths, are given to the model in every form of a micro-batch.
_TRIED = 64


def train(
    job: TrainJob,
    cache: WorkerCache,
    stop: StopRule | None = None,
    report: Report | None = None,
    limit: Sizes | None = None,
    sized: Sized | None = None,
    alive: Alive = unheard,
    leave: Leave = lambda: False,
) -> Outcome | Left:
    """Train to the end, or until a rule stops it; resume where the newest checkpoint left off.

    Leaves in ``job.out`` the best evaluation's state, ``best/`` (a Hugging Face folder), ``mask.safetensors`` or
    ``adapter/`` (LoRA, a peft folder), and ``outcome.json``.

    Args:
        job: what to train.
        cache: what this worker has from the last job. torch.distributed must be initialised.
        stop: asked after every evaluation, on every worker; must answer alike on all.
        report: told of every evaluation, on every worker.
        limit: how much at once, at most, where more has been too much for the memory.
        sized: told, on every worker, how much it is going to be.
        alive: told, on every worker, what is done next.
        leave: asked, on every worker, whether to leave the rest to workers elsewhere.
    """
    outcome = _trained(job, cache, stop, report, limit, sized, alive, leave)
    if isinstance(outcome, Left):
        return outcome
    if job.unselected_dtype is not None and outcome.best is not None:
        gc.collect()  # what was trained: the checkpoint as it is takes its place
        score_whole(outcome, job, cache, limit, alive)
    if dist.get_rank() == 0:
        outcome.save(Path(job.out) / "outcome.json")
        drop_checkpoints(_checkpoints(job))
    return outcome


def _checkpoints(job: TrainJob) -> Path:
    return Path(job.out) / "checkpoints"


def _trained(
    job: TrainJob,
    cache: WorkerCache,
    stop: StopRule | None,
    report: Report | None,
    limit: Sizes | None,
    sized: Sized | None,
    alive: Alive,
    leave: Leave,
) -> Outcome | Left:
    trainer = Trainer(job, cache, limit, sized, alive)
    try:
        trainer.resume()
        reason = None if trainer.history else trainer.evaluate(report) or trainer.nothing_to_do()
        while reason is None:
            if not trainer.train_until_evaluation(leave):
                return trainer.leave_off()
            reason = trainer.evaluate(report) or trainer.finished(stop)
            if reason is None:
                trainer.checkpoint()
        return trainer.outcome(reason)
    finally:
        trainer.free()


class Trainer:
    """The state of one run on one worker."""

    def __init__(
        self,
        job: TrainJob,
        cache: WorkerCache,
        limit: Sizes | None = None,
        sized: Sized | None = None,
        alive: Alive = unheard,
    ) -> None:
        self.cache, self.device, self.alive = cache, cache.device, alive
        alive("loads model and data")
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        torch.manual_seed(job.train.seed)
        memory.begin(self.device)
        # Not the model's: what is fine-tuned here is prompted by the data's chat template ever after.
        self.tokenizer = cache.tokenizer(str(Path(job.data) / TOKENIZER))
        self.training = cache.split(job.data, job.train.examples)
        self.validation = cache.split(job.data, "validation")
        model = cache.model(job)
        compute, computes = settled(job.scaling, self.device)
        job = replace(job, scaling=compute)
        self.sizes, self.note = training_sizes(
            model, job, self.training.lengths, self.validation.lengths, self.device, limit
        )
        self._tell(computes)
        if sized:
            sized(self.sizes)
        share = job.train.batch_size // self.world
        self.job = job = replace(job, accumulates=share * self.sizes.longest > self.sizes.training)
        if job.scaling.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})

        def calibrate() -> None:
            for row in self.training.rows[:_CALIBRATION]:  # one by one: padding would count as input
                with self.flops.counted("calibration", 1, len(row["input_ids"])):
                    model(input_ids=self._batch([row])["input_ids"])

        self.flops = Flops()
        alive("sets training up")
        self._tell(said_of(job, model))
        self.rival = self._rival(model.eval())
        self.method = attach(model, job, self.tokenizer, calibrate)
        # Before ZeRO-3 shards them.
        self.trainable = sum(parameter.numel() for parameter in self.method.parameters)
        self.loss = AnswerLoss(model, whole=job.scaling.zero_stage < 3)
        self.form = self._form(model)
        self.prefix = self._prefix(model)
        self.dropout = add_dropout(model, job.train.dropout)
        self.engine = build_engine(model, self.method.parameters, job.train, job.scaling)
        self.history: list[Evaluation] = []
        self.stop: Stop | None = None
        self.step = self.tokens = 0
        self.losses: list[torch.Tensor] = []  # of steps since the last evaluation
        self.earlier_losses: list[float] = []  # the same, of another process, over all workers' examples
        self.earlier_seconds, self.started = 0.0, time.monotonic()
        self.earlier_flops = self.earlier_memory = 0.0

    def resume(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        self.alive("reads a checkpoint")
        self.history, position = load_checkpoint(self.engine, _checkpoints(self.job))
        if self.history:
            last = position or self.history[-1]
            self.earlier_losses = position.losses if position else []
            self.step, self.tokens, self.earlier_seconds = last.step, last.tokens, last.seconds
            self.earlier_flops, self.earlier_memory = last.flops, last.memory
            self._follow()

    def train_until_evaluation(self, leave: Leave = lambda: False) -> bool:
        """Take optimizer steps up to the next evaluation, or the end.

        Returns:
            Whether it got there: not where it was asked to leave before.
        """
        self.engine.train()
        while True:
            self._optimizer_step()
            if self.step % self.job.train.eval_every == 0 or self._exhausted():
                return True
            if leave():
                return False

    def evaluate(self, report: Report | None = None) -> StopReason | None:
        """Score this state on validation, add it to the history, and keep it if it is the best.

        Returns:
            ``cancelled`` if whoever it was reported to wants no more.
        """
        values, losses = self._validation_values(self.job.evaluation.monitor), self._training_losses()
        self.losses, self.earlier_losses = [], []
        if not all(map(math.isfinite, [*values, *losses])):
            raise FloatingPointError(
                f"the loss or score is not finite at step {self.step}; a learning rate lower than "
                f"{self.job.train.lr:g} may help"
            )
        evaluation = Evaluation(
            step=self.step,
            score=sum(values) / len(values),
            standard_error=standard_error(values),
            tokens=self.tokens,
            seconds=self._seconds(),
            loss=sum(losses) / len(losses) if losses else math.nan,
            ratio=self.method.ratio,
            eligible=self.method.eligible,
            **self._against_rival(values),
            **self._resources(),
            note="" if self.history else self.note,
        )
        self.history.append(evaluation)
        if best_index(self.history) == len(self.history) - 1:
            self.alive("saves the best state")
            self.method.keep(Path(self.job.out))
            if self.job.unselected_dtype is None:
                keep_scores(self.job, self.job.evaluation.monitor, values)
        if self.rank == 0:
            earlier = [asdict(each) for each in self.history]
            progress = {"steps": self.job.train.steps, **asdict(evaluation), "history": earlier}
            write_json(Path(self.job.out) / "progress.json", progress)
        return StopReason.CANCELLED if report and report(evaluation) else None

    def finished(self, stop: StopRule | None) -> StopReason | None:
        """Return why the run ends now, or None."""
        self.stop = stop(self.history, self.job.train.steps) if stop else None
        if self.stop:
            return self.stop.reason
        return StopReason.COMPLETED if self._exhausted() else None

    def nothing_to_do(self) -> StopReason | None:
        """Return ``completed`` for a run of no steps."""
        return StopReason.COMPLETED if self.job.train.steps == 0 else None

    def checkpoint(self) -> None:
        """Write a checkpoint, if one is due."""
        if (len(self.history) - 1) % self.job.train.checkpoint_every == 0:
            self.alive("writes a checkpoint")
            save_checkpoint(self.engine, _checkpoints(self.job), self.history)

    def leave_off(self) -> Left:
        """Write a checkpoint of this very step, for workers elsewhere to go on from."""
        self.alive("writes a checkpoint")
        losses = self._training_losses()
        position = Position(self.step, self.tokens, self._seconds(), losses=losses, **self._resources())
        save_checkpoint(self.engine, _checkpoints(self.job), self.history, position)
        return Left(self.step)

    def outcome(self, reason: StopReason) -> Outcome:
        """Return how it ended."""
        self.alive("ends its job")
        dist.barrier()
        last = self.history[-1]
        size = size_of(Path(self.job.out))
        trained = self.trainable if self.job.train.steps else 0
        cost = Cost(last.tokens, last.flops, last.seconds, last.memory, trained, size)
        outcome = Outcome(reason, self.history, best_index(self.history), cost=cost, stop=self.stop)
        outcome.score = self._decisive_score(outcome)
        return outcome

    def _seconds(self) -> float:
        return round(self.earlier_seconds + time.monotonic() - self.started, 3)

    def _decisive_score(self, outcome: Outcome) -> float | None:
        evaluation, best = self.job.evaluation, outcome.best_evaluation
        if best is None or self.job.unselected_dtype is not None:  # which is scored when its memory is free
            return None
        if evaluation.metric == evaluation.monitor:
            return best.score
        if not outcome.decided(self.job):
            return None
        self.method.recall(Path(self.job.out))
        values = self._validation_values(evaluation.metric)
        keep_scores(self.job, evaluation.metric, values)
        return sum(values) / len(values)

    def free(self) -> None:
        """Let go of the engine and leave the backbone as it was."""
        self.engine.destroy()
        for hook in self.dropout:
            hook.remove()
        self.method.free()
        if self.job.scaling.gradient_checkpointing:
            self.engine.module.gradient_checkpointing_disable()

    def _exhausted(self) -> bool:
        train = self.job.train
        return self.step >= train.steps or (train.max_tokens is not None and self.tokens >= train.max_tokens)

    def _optimizer_step(self) -> None:
        train = self.job.train
        indices = global_batch(self.step, train.batch_size, len(self.training.rows), train.seed)
        answer_tokens = sum(self.training.answer_lengths[index] for index in indices)
        loss_sum = torch.zeros((), device=self.device)
        packed = self.form == Form.PACKED
        batches = micro_batches(indices, self.training.lengths, self.sizes.training, self.rank, self.world, packed)
        for number, taken in enumerate(batches, start=1):
            self.alive("trains")
            rows = [self.training.rows[index] for index in taken]
            batch, labels = self._arranged(rows)
            answers = sum(self.training.answer_lengths[index] for index in taken)
            self.engine.set_gradient_accumulation_boundary(number == len(batches))
            with (
                self._known(self.training, rows, labels.shape[1], packed) as skipped,
                self.flops.counted(f"training from layer {skipped}", labels.shape[0], labels.shape[1], answers),
            ):
                nll = self.loss(self.engine, batch, labels)
                # The engine averages over workers; what is wanted is the mean over the global batch's answer tokens,
                # whatever the number of workers and micro-batches.
                self.engine.backward(nll * (self.world / answer_tokens), scale_wrt_gas=False)
            self.engine.step()
            loss_sum += nll.detach()
        self.step += 1
        self.tokens += sum(self.training.lengths[index] for index in indices)
        self._follow()
        self.losses.append(loss_sum * (self.world / answer_tokens))

    def _known(
        self, split: Split, rows: Sequence[Mapping[str, Any]], length: int, packed: bool = False
    ) -> AbstractContextManager[int]:
        """Context manager for a forward over rows of a split, yielding the number of layers that need no computing."""
        if self.prefix is None:
            return nullcontext(0)
        return self.prefix.around(split.forward(rows, length, self.device, packed))

    def _arranged(self, rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Return what the model takes of some rows, on its device, and their labels, which stay on the CPU."""
        batch, labels = arranged(rows, self.tokenizer.pad_token_id, self.form)
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}, labels

    def _form(self, model: PreTrainedModel) -> Form:
        """Return the form of micro-batches."""
        if not self.job.train.steps:
            return Form.MASKED
        form, told = chosen(
            model,
            self.training.rows[:_TRIED],
            self.tokenizer.pad_token_id,
            self.device,
            self.job.train.packing,
            lambda inputs: self._logits(model, inputs),
        )
        self._tell(told)
        return form

    def _logits(self, model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return a model's logits, computed as training computes them."""
        dtype = autocast_dtype(self.job.scaling)
        with torch.no_grad(), torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            logits: torch.Tensor = model.eval()(**inputs, use_cache=False).logits
            return logits

    def _tell(self, told: str) -> None:
        self.note = "; ".join(filter(None, [self.note, told]))

    def _prefix(self, model: PreTrainedModel) -> Prefix | None:
        """Return what keeps the hidden states below the lowest trained layer; None where that cannot be, or not pay."""
        job, scaling = self.job, self.job.scaling
        layers = 0 if scaling.zero_stage == 3 or scaling.gradient_checkpointing else frozen_layers(model)
        if not layers or not scaling.prefix_cache_gb or job.train.dropout or not job.train.steps:
            return None
        states = self.cache.states
        states.budget = scaling.prefix_cache_gb * 1e9
        # Below the lowest selected layer all is outside the selection, whatever that is.
        prefix = Prefix(model, layers, states, (*self._backbone, job.unselected_dtype), scaling.compute)
        rows = self.training.rows[:2]
        batch, labels = self._arranged(rows)
        few = self.training.forward(rows, labels.shape[1], self.device, self.form == Form.PACKED)
        if prefix.agrees(lambda: self._logits(model, batch).float(), few):
            return prefix
        self._tell(
            f"layers 0-{layers - 1} are computed each time: what they make of an example cannot be kept, for this "
            "architecture's sake or for want of disk (scaling.prefix_cache_gb)"
        )
        return None

    @property
    def _backbone(self) -> tuple[str | None, ...]:
        """What a frozen model is, as its checkpoint has it: without a fingerprint nobody else's is known to be this."""
        job = self.job
        return job.model, job.dtype, job.attention, job.backbone or self.cache.states.mine

    def _follow(self) -> None:
        self.method.update(self.step / self.job.train.steps)

    def _batch(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        batch = collate(rows, self.tokenizer.pad_token_id)
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def _training_losses(self) -> list[float]:
        """Return the loss of every step since the last evaluation, over all workers' examples, alike on all."""
        if not self.losses:
            return self.earlier_losses
        losses = torch.stack(self.losses)
        dist.all_reduce(losses)
        values: list[float] = (losses / self.world).tolist()
        return [*self.earlier_losses, *values]

    def _validation_values(self, metric: Metric) -> list[float]:
        """Return a metric of every validation example, in order, computed by all workers together."""
        return self._scores(self.engine.module, metric, lambda rows, length: self._known(self.validation, rows, length))

    def _scores(self, model: torch.nn.Module, metric: Metric, around: Around | None = None) -> list[float]:
        job = self.job
        self.alive("scores examples")
        return score_together(
            model,
            self.validation.rows,
            metric,
            job.evaluation,
            job.scaling,
            self.tokenizer,
            (self.sizes.scoring, job.train.eval_batch_size),
            self.device,
            lambda done, total: self.alive("scores examples"),
            around,
        )

    def _rival(self, model: PreTrainedModel) -> list[float] | None:
        """Return the scores of what a run is held against on its way: the rival's, in as many bits as the run's own.

        Args:
            model: with nothing put on it yet.
        """
        job = self.job
        if job.reference_scores is None:
            return None
        whole = self.cache.scores(job.reference_scores)
        if held_in_fewer_bits(job, model) is None:
            return whole
        metric, key = job.evaluation.monitor, (job.unselected_dtype, *sorted(selected(job, model)))
        rounded = self.cache.once(
            (self._backbone, *key, self.validation.name, metric, job.scaling.compute),
            lambda: self._scores(model, metric),
        )
        shown = unit(metric)
        with_them, as_it_is = (shown.score(sum(scores) / len(scores)) for scores in (rounded, whole))
        self._tell(
            f"so held, FFT scores {with_them} before anything is learned, and {as_it_is} as it is: scores on the way "
            "are held against the former, the last one, which is of the checkpoint as it is, against the latter"
        )
        return rounded

    def _against_rival(self, values: Sequence[float]) -> dict[str, float]:
        if self.rival is None:
            return {}
        differences = [value - other for value, other in zip(values, self.rival, strict=True)]
        return {"delta": sum(differences) / len(differences), "delta_error": standard_error(differences)}

    def _resources(self) -> dict[str, float]:
        """Return what all workers have spent so far, alike on all."""
        flops = torch.tensor(self.flops.total, dtype=torch.float64, device=self.device)
        peak = torch.tensor(memory.peak(self.device), dtype=torch.float64, device=self.device)
        dist.all_reduce(flops)
        dist.all_reduce(peak, op=dist.ReduceOp.MAX)
        return {"flops": self.earlier_flops + float(flops), "memory": max(self.earlier_memory, float(peak))}
