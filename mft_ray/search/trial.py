"""One trial: what Ray Tune runs for each configuration that Optuna proposes."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import ray.tune
from ray.tune.integration.ray_train import TuneReportCallback

from mft_ray.config import Config
from mft_ray.search.folder import RunFolder
from mft_ray.search.space import mask_settings
from mft_ray.search.stopping import AgainstFft
from mft_ray.search.study import METRIC
from mft_ray.training.job import Evaluation, TrainJob, write_json
from mft_ray.training.launch import launch, metrics_of


@dataclasses.dataclass(frozen=True)
class TrialPlan:
    """What all trials of a search share.

    Attributes:
        config: the resolved configuration.
        root: the run folder.
        backbone: folder of the FFT model.
        fingerprint: of that model.
        before: folder or hub id of the model before fine-tuning, where that is known.
        stop: the rule that ends trials early.
    """

    config: Config
    root: str
    backbone: str
    fingerprint: str
    before: str | None
    stop: AgainstFft

    def job(self, trial_id: str, point: dict[str, Any]) -> TrainJob:
        """Return the training job of one configuration."""
        config = self.config
        return TrainJob(
            method="mft",
            model=self.backbone,
            data=str(RunFolder(Path(self.root)).data),
            out=str(RunFolder(Path(self.root)).trial(trial_id)),
            train=config.train.model_copy(update={"lr": point["lr"]}),
            evaluation=config.evaluation,
            scaling=config.scaling,
            dtype=config.model.dtype,
            attention=config.model.attention,
            mask=mask_settings(config.mask, point),
            backbone=self.fingerprint,
            before=self.before,
        )


class BestSoFar(TuneReportCallback):  # type: ignore[misc]
    """Relay evaluations to Tune, with the best score so far: what Optuna learns."""

    def __init__(self) -> None:
        super().__init__()
        self._best = float("nan")

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Put the first worker's metrics (all are alike) on Tune's queue."""
        mine = metrics[0]
        if mine["eligible"]:
            self._best = max(mine["score"], self._best) if self._best == self._best else mine["score"]
        super().after_report(run_context, [{**mine, METRIC: self._best}], checkpoint)

    def drain(self) -> None:
        """Wait until Tune has taken the last report: a driver that returns sooner can block for ever."""
        while not self._training_actor_item_queue.empty():
            time.sleep(0.05)


def run_trial(point: dict[str, Any], plan: TrialPlan) -> None:
    """Learn one mask: the driver function of a trial. Holds no resources; its workers do.

    Args:
        point: what Optuna chose.
        plan: what all trials share.

    Raises:
        RunFailed: the workers failed; the reason is also in the trial's ``error.json``.
    """
    trial_id = ray.tune.get_context().get_trial_id()
    job = plan.job(trial_id, point)
    out = Path(job.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "error.json").unlink(missing_ok=True)
    write_json(out / "config.json", point)
    relay = BestSoFar()
    try:
        outcome = launch(job, plan.stop, [relay])
    except Exception as error:
        write_json(out / "error.json", {"error": str(error)})
        raise
    relay.drain()
    best = outcome.best_evaluation
    last: Evaluation = outcome.history[-1]
    ray.tune.report(
        {
            **metrics_of(last),
            METRIC: best.score if best else float("nan"),
            "stopped_reason": outcome.stopped_reason,
        }
    )
