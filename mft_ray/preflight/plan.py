"""What a search will take, before anything is rented: memory, disk, steps, hours, trials at once, dollars."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import PreTrainedConfig

from mft_ray.config import Config, ScalingConfig, TrainConfig
from mft_ray.config.params import apply
from mft_ray.errors import UserError
from mft_ray.masking import depth
from mft_ray.preflight.cards import Card, card, installed, processors
from mft_ray.preflight.needs import Needs, needs_of
from mft_ray.preflight.storage import disk_of, host_of
from mft_ray.preflight.workload import Workload, workload
from mft_ray.runs.prepare import skeleton
from mft_ray.searches.space import points_to_evaluate, what_may_be_chosen
from mft_ray.training.compute import multiplies_bfloat16
from mft_ray.training.counted import Counter
from mft_ray.training.footprint import Trained
from mft_ray.training.job import TrainJob
from mft_ray.training.memory import LEFT_ALONE
from mft_ray.training.method_jobs import train_job
from mft_ray.workers.machine import this_machine


@dataclass(frozen=True)
class Subject:
    """What is planned for: a configuration with what it says of the model and the data.

    Attributes:
        config: its ``scaling.compute`` settled, epochs turned into steps.
        model: structure of the model.
        data: what there is to train on.
        card: what workers compute on.
        counter: counts passes through the model.
    """

    config: Config
    model: nn.Module
    data: Workload
    card: Card
    counter: Counter

    def changed(self, config: Config) -> Subject:
        """Return the same with another configuration."""
        return replace(self, config=_settled(config, self.card, self.data))


@dataclass(frozen=True)
class Training:
    """One training run of a plan.

    Attributes:
        name: what it is: FFT, a trial, continued FFT.
        job: what is trained.
        needs: what it takes.
        room: bytes of a device that a worker may take.
        tokens: trained on at the most.
        hours: that it takes at the most, evaluations included; None where no rate is known.
    """

    name: str
    job: TrainJob
    needs: Needs
    room: float
    tokens: float
    hours: float | None

    @property
    def fits(self) -> bool:
        """Whether a worker's device has room for it."""
        return self.needs.peak <= self.room


@dataclass(frozen=True)
class Plan:
    """What a search will take on one kind of device.

    Attributes:
        card: what workers compute on.
        count: how many there are.
        data: what there is to train on.
        trainings: FFT unless it is given, the trial that takes the most, continued FFT.
        trials: of the search.
        at_once: how many of them at a time; 0 where not even one has its place.
        hours: of everything, one after the other but for trials; None where no rate is known.
        price: dollars of a GPU in an hour, where given.
        host: bytes of a node's memory by part, all workers on one.
        disk: bytes of disks by part.
    """

    card: Card
    count: int
    data: Workload
    trainings: tuple[Training, ...]
    trials: int
    at_once: int
    hours: float | None
    price: float | None
    host: dict[str, float]
    disk: dict[str, float]

    @property
    def gpu_hours(self) -> float | None:
        """Hours of all GPUs together."""
        return None if self.hours is None or not self.card.gpu else self.hours * self.count

    @property
    def dollars(self) -> float | None:
        """Price of the GPUs, where that is given."""
        return None if self.gpu_hours is None or self.price is None else self.gpu_hours * self.price

    @property
    def fits(self) -> bool:
        """Whether everything has its place."""
        return self.at_once > 0 and all(each.fits for each in self.trainings)


def subject(config: Config, gpu: str | None, mean: int | None = None) -> Subject:
    """Look at a configuration's model, data and device.

    Args:
        config: configuration of a search.
        gpu: name of a known card; None: what this machine has.
        mean: tokens of an example, where the data is not to be looked at.

    Raises:
        UserError: the card is not known, workers ask for another kind of device, or model or data cannot be used.
    """
    config = config.seeded()
    model = skeleton(config, weights=False)
    architecture: PreTrainedConfig = model.config  # type: ignore[assignment]
    its = _device(config.scaling, gpu)
    data = workload(config, model, mean)
    return Subject(_settled(config, its, data), model, data, its, Counter(architecture))


def plan(it: Subject, gpus: int | None = None, price: float | None = None) -> Plan:
    """Plan a search.

    Args:
        it: what is planned for.
        gpus: how many cards there are; None: as many as this machine has, or else as one training asks for.
        price: dollars of a GPU in an hour.
    """
    trainings = tuple(trainings_of(it))
    asked = max(math.ceil(each.job.scaling.workers * each.job.scaling.gpus_per_worker) for each in trainings)
    count = gpus or it.card.count or asked
    search, scaling = it.config.search, it.config.scaling
    at_once = min(_places(it.card, count, scaling) // scaling.workers, search.max_concurrent or search.trials)
    at_once = min(at_once, search.trials)
    return Plan(
        it.card,
        count,
        it.data,
        trainings,
        search.trials,
        at_once,
        _hours(it, trainings, at_once),
        price,
        host_of([(each.job, each.needs) for each in trainings], it.card.gpu, max(1, at_once)),
        disk_of(it.config, [(each.job, each.needs) for each in trainings], it.data, max(1, at_once)),
    )


def trainings_of(it: Subject) -> Iterator[Training]:
    """Yield the training runs of a search, one of each kind."""
    config = it.config
    if not config.fft.given:
        yield _training(it, "FFT", _job(config, "fft", config.fft.scaling or config.scaling))
    trial = _largest_trial(it)
    yield trial
    fft = config.fft.train
    steps = max(1, math.ceil(trial.tokens / (fft.batch_size * it.data.lengths.mean)))
    longer = fft.model_copy(update={"steps": steps, "epochs": None, "patience": None})
    config = config.model_copy(update={"fft": config.fft.model_copy(update={"train": longer})})
    yield _training(it, "continued FFT", _job(config, "fft", config.fft.scaling or config.scaling))


def _largest_trial(it: Subject) -> Training:
    """Return the trial that takes the most memory, of those that may be."""
    config, layers = it.config, depth(it.model)
    method, points = config.search.method, points_to_evaluate(config, layers)
    if config.search.trials <= len(points):  # which come first
        may_be = [apply(config, point) for point in points[: config.search.trials]]
    else:
        may_be = list(what_may_be_chosen(config, layers))
    found: dict[tuple[int, int, int], TrainJob] = {}
    for chosen in may_be:
        job = _job(chosen, method, chosen.scaling)
        trained = Trained.by(job, it.model)
        found.setdefault((trained.weights.trained, -trained.lowest, job.train.steps), job)
    # The most weights, or else the lowest layer, down to which the backward pass goes.
    candidates = {id(job): job for job in (found[max(found)], found[max(found, key=lambda key: key[1:])])}
    trials = [_training(it, "trial", job) for job in candidates.values()]
    return max(trials, key=lambda trial: trial.needs.peak)


def _training(it: Subject, name: str, job: TrainJob) -> Training:
    scaling, train = job.scaling, job.train
    room = _room(it.card, scaling)
    needs = needs_of(job, it.model, it.data.lengths, "cuda" if it.card.gpu else "cpu", room, it.counter)
    tokens = train.steps * train.batch_size * it.data.lengths.mean
    tokens = min(tokens, train.max_tokens or math.inf)
    steps = math.ceil(tokens / (train.batch_size * it.data.lengths.mean))
    evaluations = 1 + math.ceil(steps / train.eval_every)
    operations = steps * needs.operations + evaluations * it.data.validation * needs.scoring
    rate = rate_of(it.card, job)
    hours = None if rate is None else operations / (rate * scaling.workers) / 3600
    return Training(name, job, needs, room, tokens, hours)


def rate_of(its: Card, job: TrainJob) -> float | None:
    """Return the operations that a worker does in a second; None on a GPU that is to multiply float32: nobody says."""
    scaling = job.scaling
    bf16 = scaling.compute == "bfloat16" or (job.frozen and job.dtype == "bfloat16")
    if its.gpu and not bf16:
        return None
    return its.rate * its.share * (scaling.gpus_per_worker if its.gpu else 1.0)


def _hours(it: Subject, trainings: tuple[Training, ...], at_once: int) -> float | None:
    """Return the hours of a whole search: every trial to its end, and the verdict's scores."""
    if at_once == 0 or any(each.hours is None for each in trainings):
        return None
    rounds = math.ceil(it.config.search.trials / at_once)
    # The verdict trains its models anew with other seeds, and scores three models on the test split.
    repeats = it.config.verdict.seeds
    total = sum((each.hours or 0.0) * (rounds + repeats - 1 if each.name == "trial" else repeats) for each in trainings)
    last = trainings[-1]
    rate = (rate_of(it.card, last.job) or math.inf) * last.job.scaling.workers
    return total + 3 * repeats * it.data.test * last.needs.scoring / rate / 3600


def _job(config: Config, method: str, scaling: ScalingConfig) -> TrainJob:
    pretrained = config.model.pretrained
    return train_job(method, config, model="", data="", out="", scaling=scaling, pretrained=pretrained)


def _device(scaling: ScalingConfig, gpu: str | None) -> Card:
    asked, machine = scaling.gpus_per_worker > 0, this_machine()
    if gpu is not None:
        if not asked:
            raise UserError(
                "scaling.gpus_per_worker is 0: workers of this configuration compute on processors. Give --set "
                "scaling.gpus_per_worker=1 for a GPU, or leave --gpu out."
            )
        return card(gpu)
    if not asked:
        dtype = torch.bfloat16 if _bfloat16(scaling, gpu=False) else torch.float32
        return processors(machine, dtype, scaling.cpus_per_worker)
    if not machine.cards:
        raise UserError(
            f"Workers ask for {scaling.gpus_per_worker:g} GPU each, and this machine has none. Name a card with --gpu, "
            "such as --gpu h100-80g, or give --set scaling.gpus_per_worker=0."
        )
    return installed(machine)


def _bfloat16(scaling: ScalingConfig, gpu: bool) -> bool:
    can = scaling.compute == "auto" and (gpu or multiplies_bfloat16(torch.device("cpu")))
    return can or scaling.compute == "bfloat16"


def _settled(config: Config, its: Card, data: Workload) -> Config:
    """Return a copy in which nothing is left open: what computes is named, and epochs are steps."""

    def computes(scaling: ScalingConfig) -> ScalingConfig:
        dtype = "bfloat16" if _bfloat16(scaling, its.gpu) else "float32"
        return scaling.model_copy(update={"compute": dtype})

    def steps(train: TrainConfig) -> TrainConfig:
        return train.in_steps(data.held_out if train.examples == "held_out" else data.train)

    fft = config.fft.model_copy(
        update={
            "train": steps(config.fft.train),
            "scaling": None if config.fft.scaling is None else computes(config.fft.scaling),
        }
    )
    return config.model_copy(update={"fft": fft, "train": steps(config.train), "scaling": computes(config.scaling)})


def _room(its: Card, scaling: ScalingConfig) -> float:
    """Return the bytes of a device that a worker may take: what runs beside it, and gaps, are left some."""
    usable = (1 - LEFT_ALONE) * its.memory
    if its.gpu:
        return usable * min(1.0, scaling.gpus_per_worker)
    places = max(scaling.workers, _places(its, its.count or 1, scaling))
    return usable / places


def _places(its: Card, count: int, scaling: ScalingConfig) -> int:
    each = scaling.gpus_per_worker if its.gpu else scaling.cpus_per_worker
    return math.floor(count / each + 1e-9)
