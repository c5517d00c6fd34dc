"""The FFT baseline, trained or given, and FFT continued for as many tokens as the winning mask used."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

from mft_ray.config import Config, ScalingConfig, TrainConfig
from mft_ray.data.store import open_split
from mft_ray.errors import RunFailed
from mft_ray.evaluation.statistics import standard_error
from mft_ray.masking import depth, fingerprint
from mft_ray.models.loading import load_model
from mft_ray.runs import records
from mft_ray.runs.candidates import Candidate
from mft_ray.runs.context import RunContext, scores_file
from mft_ray.runs.fft_model import FftModel
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.records import FftScores, Measured, SplitScore
from mft_ray.training.job import Outcome, StopReason, TrainJob
from mft_ray.training.method_jobs import train_job
from mft_ray.training.stopping import Patience
from mft_ray.utils.files import replacing


def job_on(
    baseline: FftModel, method: str, config: Config, *, start: str, data: Path, out: Path, scaling: ScalingConfig
) -> TrainJob:
    """Return the job of a method on the FFT model, or for ``fft`` from where that started.

    Its result is scored afterwards, together with its rivals.

    Args:
        baseline: the FFT model.
        method: one of `mft_ray.config.METHODS`.
        config: resolved configuration.
        start: folder or hub id of the model that FFT started from.
        data: folder of the prepared splits.
        out: folder for the result.
        scaling: what the job asks of the cluster.
    """
    return train_job(
        method,
        config,
        model=start if method == "fft" else baseline.model,
        data=str(data),
        out=str(out),
        scaling=scaling,
        backbone=baseline.fingerprint,
        pretrained=baseline.pretrained,
        reference_scores=baseline.scores,
        decides=False,
    )


def fft_baseline(run: RunContext) -> FftModel:
    """Train FFT until validation stops improving (or take it as given) and score it on validation, once.

    Args:
        run: run with FFT's workers.
    """
    config, folder, start = run.config, run.folder, run.start
    if folder.fft_model.exists():
        return FftModel.load(folder.fft_model)
    model, trained = start, Measured(stopped=StopReason.GIVEN)
    if not config.fft.given:
        outcome = _train(run, start, folder.fft, config.fft.train, "FFT", config.fft.train.patience)
        model, trained = str(folder.fft / "best"), described(outcome)
    candidate = Candidate("fft", model)
    metric, watched = config.evaluation.metric, config.evaluation.monitor
    values = run.score(candidate, "validation")
    during = run.score(candidate, "validation", watched)
    loaded = load_model(model)
    baseline = FftModel(
        model=model,
        fingerprint=fingerprint(loaded),
        depth=depth(loaded),
        score=sum(values) / len(values),
        standard_error=standard_error(values),
        watched=sum(during) / len(during),
        scores=str(scores_file(folder, candidate, "validation", watched)),
        pretrained=config.model.pretrained if config.fft.given else start,
    )
    scored, monitored = (SplitScore.of(each, standard_error(each)) for each in (values, during))
    known = trained.model_dump(exclude_unset=True, exclude={"method", "metric", "validation"})
    public = records.Baseline(method="fft", metric=metric, validation=scored, model=model, **known)
    if watched != metric:
        public.watched = FftScores(metric=watched, validation=monitored)
    if folder.baseline.exists():  # what was judged by it stays, where only our own record of it was damaged
        before = records.Baseline.load(folder.baseline)
        public.test, public.continued = before.test, before.continued
    public.save(folder.baseline)
    baseline.save(folder.fft_model)
    return baseline


def take_over(donor: RunFolder, folder: RunFolder) -> None:
    """Give a new run the data, start model and FFT model of another, with FFT's scores, as if it had made them.

    Args:
        donor: a run with the same model, data, FFT and evaluation.
        folder: folder of a run that has not begun.
    """
    folder.root.mkdir(parents=True, exist_ok=True)
    with replacing(folder.work) as partial:  # whole, so that what was interrupted begins anew
        for path in (donor.data, donor.start_model, donor.fft):
            if path.exists():
                shutil.copytree(path, partial / path.name, copy_function=_link)
        (partial / donor.scores.name).mkdir(parents=True)
        for path in donor.scores.glob("fft-*.json"):
            _link(path, partial / donor.scores.name / path.name)
        model = FftModel.load(donor.fft_model).moved(donor.root, folder.root)
        model.save(partial / folder.fft_model.name)
        public = records.Baseline.load(donor.baseline)
        public.model_copy(update={"model": model.model}).save(folder.baseline)


def _link(source: str | Path, to: str | Path) -> None:
    """Copy a file that nobody changes in place, for nothing where the disk can."""
    try:
        os.link(source, to)
    except OSError:
        shutil.copy2(source, to)


def continued_fft(run: RunContext, baseline: FftModel, tokens: int) -> Candidate:
    """Train the baseline on for a token budget; the best checkpoint is kept by the same rule as any.

    Args:
        run: run with FFT's workers.
        baseline: model to train on.
        tokens: budget, the winner's.
    """
    config, folder = run.config, run.folder
    fft = config.fft.train
    examples = config.train.examples  # what the winner has seen, its rival may see
    lengths = [len(row) for row in open_split(folder.data, examples)["input_ids"]]
    tokens = max(tokens, 1)  # a mask that was cut once has used none
    steps = max(1, math.ceil(tokens / (fft.batch_size * sum(lengths) / len(lengths))))
    train = fft.model_copy(
        update={
            "lr": config.fft.continued_lr or fft.lr,
            # A batch or two more than expected: the budget, not the schedule, ends the run.
            "steps": steps + 2,
            "max_tokens": tokens,
            "eval_every": min(fft.eval_every, max(1, steps // 5)),
            "seed": fft.seed + 1,
            "examples": examples,
        }
    )
    _train(run, baseline.model, folder.continued, train, "continued FFT", None)
    return Candidate("continued", str(folder.continued / "best"))


def _train(run: RunContext, start: str, out: Path, train: TrainConfig, label: str, patience: int | None) -> Outcome:
    config = run.config
    job = TrainJob(
        method="fft",
        model=start,
        data=str(run.folder.data),
        out=str(out),
        train=train,
        evaluation=config.evaluation,
        scaling=run.group.scaling,
        dtype=config.model.dtype,
        attention=config.model.attention,
        decides=False,  # it is scored afterwards, together with its rivals
    )
    try:
        return run.train(job, label, Patience(patience))
    except RunFailed as error:
        reason = f"{label} failed: {str(error).rstrip('.')}. What was finished is kept: --resume {run.folder.named}"
        raise error.again(reason) from error


def described(outcome: Outcome) -> Measured:
    """Return what is said of a training in ``baseline.json``, beside its scores."""
    best, last = outcome.best_evaluation, outcome.history[-1]
    return Measured(
        method="fft",
        stopped=outcome.stopped_reason,
        best_step=best.step if best else None,
        steps=last.step,
        tokens=last.tokens,
        seconds=last.seconds,
    )
