"""A run at work: configuration, folder and workers in one, and what is asked of them all the time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mft_ray.config import Config
from mft_ray.errors import RunFailed
from mft_ray.models.names import TRACEBACK
from mft_ray.runs.candidates import Candidate
from mft_ray.runs.folder import RunFolder
from mft_ray.training.job import GenerateJob, Outcome, ScoreJob, StopRule, TrainJob
from mft_ray.utils.files import read_json, write_json
from mft_ray.workers.group import WorkerGroup, keep_traceback, workers
from mft_ray.workers.progress import JobProgress


@dataclass(frozen=True)
class RunContext:
    """A run and the workers that it has for now.

    Attributes:
        config: resolved configuration.
        folder: run folder; what was trained or scored there before is not trained or scored again.
        start: folder or hub id of the model before fine-tuning, or of the one that is fine-tuned already.
        group: worker group.
    """

    config: Config
    folder: RunFolder
    start: str
    group: WorkerGroup

    @contextmanager
    def for_trials(self) -> Iterator[RunContext]:
        """Context manager yielding the same run with a worker group as trials have, FFT's where the two are alike."""
        if self.group.scaling == self.config.scaling:
            yield self
            return
        with workers(self.config.scaling, self.folder.work / "groups" / "trials") as other:
            yield replace(self, group=other)

    def train(self, job: TrainJob, label: str, stop: StopRule) -> Outcome:
        """Train, or return the outcome of what was trained before; evaluations are printed as they come.

        Args:
            job: training job.
            label: text before each printed line.
            stop: rule asked after every evaluation.

        Raises:
            RunFailed: it failed on every allowed try.
        """
        return self.group.train(job, stop, JobProgress(label, job.evaluation.monitor, job.train.steps))

    def score(
        self, candidate: Candidate, split: str, metric: str | None = None, limit: int | None = None
    ) -> list[float]:
        """Score a model on a split.

        Args:
            candidate: model, and mask or adapter.
            split: ``validation`` or ``test``.
            metric: name of a metric; None takes the one that decides.
            limit: number of examples, the first ones; None takes all.

        Returns:
            One score per example, in the split's order.

        Raises:
            RunFailed: it failed on every allowed try.
        """
        metric = metric or self.config.evaluation.metric
        path = scores_file(self.folder, candidate, split, metric)
        if path.exists():
            return read_json(path, lambda content: [float(value) for value in content])
        job = ScoreJob(**self._asked(candidate, split, metric), limit=limit)
        label = f"{candidate.name} on {split}"
        self.folder.scores.mkdir(parents=True, exist_ok=True)
        try:
            values = self.group.score(job, JobProgress(label, metric, None)).values
        except RunFailed as error:
            keep_traceback(error, path.with_suffix(f".{TRACEBACK}"))
            raise error.again(f"Scoring {label} failed: {error}") from error
        write_json(path, values)
        return values

    def score_on_test(self, candidates: Sequence[Candidate]) -> dict[str, dict[str, list[float]]]:
        """Score models on the test examples by the metric that decides and then by the extra ones.

        Args:
            candidates: models, told apart by name.

        Returns:
            By metric, then by name, one score per example.
        """
        evaluation = self.config.evaluation
        limits: dict[str, int | None] = {evaluation.metric: None}
        limits |= {name: evaluation.extra_n for name in evaluation.extra if name != evaluation.metric}
        return {
            metric: {each.name: self.score(each, "test", metric, limit) for each in candidates}
            for metric, limit in limits.items()
        }

    def answer(self, candidate: Candidate, split: str, examples: Sequence[int]) -> list[str]:
        """Generate a model's answers to some examples of a split, greedily.

        Args:
            candidate: model, and mask or adapter.
            split: ``validation`` or ``test``.
            examples: places in the split.

        Raises:
            RunFailed: it failed on every allowed try.
        """
        asked = self._asked(candidate, split, self.config.evaluation.metric)
        return self.group.answer(GenerateJob(**asked, examples=tuple(examples))) if examples else []

    def _asked(self, candidate: Candidate, split: str, metric: str) -> dict[str, Any]:
        """Return what every job says that only looks at a model."""
        config = self.config
        return {
            "model": candidate.model,
            "data": str(self.folder.data),
            "split": split,
            "metric": metric,
            "evaluation": config.evaluation,
            "scaling": self.group.scaling,
            "batch_size": config.train.eval_batch_size,
            "artifact": candidate.artifact,
            "pretrained": candidate.pretrained,
            "dtype": config.model.dtype,
            "attention": config.model.attention,
        }


@contextmanager
def at_work(config: Config, folder: RunFolder, start: str) -> Iterator[RunContext]:
    """Context manager yielding a run with the worker group used for FFT training and scoring.

    Args:
        config: resolved configuration.
        folder: run folder.
        start: same as in `RunContext`.
    """
    with workers(config.fft.scaling or config.scaling, folder.work / "groups" / "fft") as group:
        yield RunContext(config, folder, start, group)


def scores_file(folder: RunFolder, candidate: Candidate, split: str, metric: str) -> Path:
    """Return where `RunContext.score` keeps what it found."""
    return folder.scores_of(candidate.name, split, metric)
