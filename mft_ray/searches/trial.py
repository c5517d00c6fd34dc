"""One trial: what Ray Tune runs for each configuration that Optuna proposes."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import ray.tune

from mft_ray.config import Config
from mft_ray.config.params import Params, apply
from mft_ray.errors import Diverged, GivenUp, RunFailed
from mft_ray.models.names import TRACEBACK
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.live.steering import sign_of_end
from mft_ray.runs.prepare import in_steps
from mft_ray.searches.budget import spent
from mft_ray.searches.restarts import note_restart
from mft_ray.searches.trial_report import Ended, Evaluated
from mft_ray.training.checkpoint import drop_checkpoints
from mft_ray.training.job import Evaluation, Outcome, Restart, StopReason, TrainJob, best_index, read_step
from mft_ray.training.method_jobs import train_job
from mft_ray.training.stopping import AgainstFft
from mft_ray.utils.files import write_json
from mft_ray.workers.environment import inherit
from mft_ray.workers.group import WorkerGroup, keep_traceback
from mft_ray.workers.job_queue import RecyclePolicy


@dataclass(frozen=True)
class TrialPlan:
    """What all trials of a search share.

    Attributes:
        config: the resolved configuration.
        root: the run folder.
        backbone: folder of the FFT model.
        fingerprint: fingerprint of that model.
        pretrained: folder or hub id of the model before fine-tuning, where that is known.
        reference_scores: file with FFT's validation scores, one per example.
        stop: the rule that ends trials early.
    """

    config: Config
    root: str
    backbone: str
    fingerprint: str
    pretrained: str | None
    reference_scores: str
    stop: AgainstFft

    def job(self, trial_id: str, point: Params) -> TrainJob:
        """Return the training job of one configuration."""
        method, folder = self.config.search.method, RunFolder(Path(self.root))
        return train_job(
            method,
            in_steps(apply(self.config, point), folder),
            model=self.pretrained if method == "fft" and self.pretrained else self.backbone,
            data=str(folder.data),
            out=str(folder.trial(trial_id)),
            scaling=self.config.scaling,
            backbone=self.fingerprint,
            pretrained=self.pretrained,
            reference_scores=self.reference_scores,
        )


class MaskTrial(ray.tune.Trainable):  # type: ignore[misc]
    """Learns one mask, or whatever the method trains, after another on a worker group of its own.

    It holds no resources; its workers do.

    Tune reuses it (`reuse_actors`): a trial that follows another finds processes, imports, the backbone and the
    data where they are, and brings new scores. One step is one evaluation.
    """

    def setup(self, config: Params, plan: TrialPlan) -> None:
        """Begin the first trial.

        Args:
            config: what Optuna chose.
            plan: what all trials share.
        """
        inherit()  # for the workers that it starts
        self._plan = plan
        self._work = Path(plan.root) / "work"
        self._history: list[Evaluation] = []
        self._steps, self._to_end_since = 0, math.inf
        search = plan.config.search
        recycle = RecyclePolicy(search.recycle_after)
        self._group = WorkerGroup(plan.config.scaling, self._work / "groups" / self.trial_id, recycle)
        self._begin(config)

    def reset_config(self, new_config: Params) -> bool:
        """Begin the next trial."""
        self._group.cancel()
        self._begin(new_config)
        return True

    def step(self) -> Params:
        """Return the next evaluation, with the best score so far: what Optuna learns. Then how the trial ended."""
        try:
            while isinstance(event := self._group.next(self._to_end), Restart):
                note_restart(self._out, event.reason)
        except GivenUp:
            return self._ended_where_it_is().to_tune()
        except RunFailed as error:
            # No error of Tune's: that would end this actor, and the workers are as good as before.
            keep_traceback(error, self._out / TRACEBACK)
            write_json(self._out / "error.json", {"error": str(error), "raised": error.raised})
            drop_checkpoints(self._out / "checkpoints")
            last = self._history[-1] if self._history else None
            return Ended(StopReason.FAILED, math.nan, last, isinstance(error, Diverged)).to_tune()
        if isinstance(event, Evaluation):
            self._history = [*(each for each in self._history if each.step < event.step), event]
            return Evaluated(event, self._best(), self._steps).to_tune()
        assert isinstance(event, Outcome)
        score = math.nan if event.score is None else event.score
        return Ended(event.stopped_reason, score, event.history[-1]).to_tune()

    def cleanup(self) -> None:
        """Send the workers home."""
        self._group.close()

    def _begin(self, point: Params) -> None:
        job = self._plan.job(self.trial_id, point)
        self._out = Path(job.out)
        self._out.mkdir(parents=True, exist_ok=True)
        for earlier in ("error.json", TRACEBACK):
            (self._out / earlier).unlink(missing_ok=True)
        sign_of_end(self._out).unlink(missing_ok=True)
        write_json(self._out / "config.json", point)
        self._history = []
        self._steps, self._to_end_since = job.train.steps, math.inf
        self._group.submit(job, self._plan.stop)

    def _best(self) -> float:
        """Return the best score so far; NaN where trials end with a score of another kind."""
        evaluation, best = self._plan.config.evaluation, best_index(self._history)
        # Nor of the same model, where weights are held in fewer bits on the way.
        whole = self._plan.config.model.unselected_dtype is None
        comparable = best is not None and whole and evaluation.monitor == evaluation.metric
        return self._history[best].score if comparable and best is not None else math.nan

    def _to_end(self) -> bool:
        """Say whether it was to end, for want of budget or at a person's word, for longer than the grace.

        Until then its next evaluation ends it.
        """
        if not spent(self._work) and not sign_of_end(self._out).exists():
            return False
        now = time.monotonic()
        if self._to_end_since == math.inf:
            self._to_end_since = now
            self._group.break_off()
        return now - self._to_end_since > self._plan.config.search.budget.grace_minutes * 60

    def _ended_where_it_is(self) -> Ended:
        """Leave the outcome that the workers could not write, as far as this process has seen it."""
        drop_checkpoints(self._out / "checkpoints")
        if not self._history:
            return Ended(StopReason.CANCELLED)
        # What is kept is the best of all evaluations: another driver, or the workers after their last word, may have
        # seen one that is not in this history.
        seen = read_step(self._out) == self._history[-1].step and self._history[0].step == 0
        best = best_index(self._history) if seen else None
        score = None if best is None or math.isnan(self._best()) else self._best()
        Outcome(StopReason.CANCELLED, self._history, best, score).save(self._out / "outcome.json")
        return Ended(StopReason.CANCELLED, math.nan if score is None else score, self._history[-1])
