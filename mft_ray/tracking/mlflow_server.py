"""MLflow: a run for FFT, continued FFT, every trial and the verdict, with a tag that makes them one group."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from mft_ray.config import MlflowConfig
from mft_ray.config.params import Params
from mft_ray.runs.folder import RunFolder
from mft_ray.tracking.sent import SentRun
from mft_ray.tracking.service import Numbers, Service

GROUP = "mft_ray.group"
_AT_ONCE = 1000  # metrics that a server takes in one request
# A search does not wait for a server, and tells nobody else about it.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class Mlflow(Service):
    """Sends a search to an MLflow server.

    Args:
        config: address and experiment.
        folder: run folder.
        label: name of the search.
    """

    name = "MLflow"

    def __init__(self, config: MlflowConfig, folder: RunFolder, label: str) -> None:
        super().__init__(folder, label, f"{config.uri} {config.experiment}", config.artifacts)
        prepare_environment()
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=config.uri)
        self._experiment = config.experiment
        self._experiment_id: str | None = None
        self._open: set[str] = set()

    def begin(self, name: str, params: Params, known: SentRun | None) -> SentRun:
        """Make a run, or go on with it."""
        if name in self._open:
            assert known is not None
            return known
        from mlflow.entities import Param

        sent = known or SentRun(run_id=self._found(name) or self._made(name))
        self._client.log_batch(sent.run_id, params=[Param(setting, str(value)) for setting, value in params.items()])
        self._client.update_run(sent.run_id, status="RUNNING")
        # Something may have been sent that could not be noted.
        steps = [each.step for each in self._client.get_metric_history(sent.run_id, "validation/score")]
        sent.step = max([sent.step, *steps])
        self._open.add(name)
        return sent

    def log(self, sent: SentRun, name: str, rows: Sequence[Numbers]) -> None:
        """Send evaluations."""
        from mlflow.entities import Metric

        metrics = [
            Metric(metric, value, round(when * 1000), step)
            for step, when, values in rows
            for metric, value in values.items()
        ]
        for place in range(0, len(metrics), _AT_ONCE):
            self._client.log_batch(sent.run_id, metrics=metrics[place : place + _AT_ONCE])

    def summarize(self, sent: SentRun, name: str, numbers: dict[str, float], facts: dict[str, str]) -> None:
        """Send final scores as metrics, and texts as tags."""
        from mlflow.entities import Metric, RunTag

        now = round(time.time() * 1000)
        metrics = [Metric(metric, value, now, 0) for metric, value in numbers.items()]
        self._client.log_batch(sent.run_id, metrics=metrics, tags=[RunTag(tag, text) for tag, text in facts.items()])

    def send_files(self, sent: SentRun, name: str, files: dict[str, Path]) -> None:
        """Send files as the run's artifacts."""
        for place, path in files.items():
            folder = PurePosixPath(place).parent.as_posix()
            self._client.log_artifact(sent.run_id, str(path), None if folder == "." else folder)

    def end(self, sent: SentRun, name: str, failed: bool) -> None:
        """End a run as finished or failed."""
        self._client.set_terminated(sent.run_id, "FAILED" if failed else "FINISHED")
        self._open.discard(name)

    def close(self) -> None:
        """Say of runs that have not ended that nobody works on them."""
        for name in list(self._open):
            self._client.set_terminated(self.sent.runs[name].run_id, "KILLED")
            self._open.discard(name)

    def _found(self, name: str) -> str | None:
        """Return a run that was made and could not be noted."""
        its = f"tags.`{GROUP}` = '{self.group}' and attributes.run_name = '{name}'"
        found = self._client.search_runs([self._of_experiment()], its, max_results=1)
        return str(found[0].info.run_id) if found else None

    def _made(self, name: str) -> str:
        run = self._client.create_run(self._of_experiment(), tags={GROUP: self.group}, run_name=name)
        return str(run.info.run_id)

    def _of_experiment(self) -> str:
        if self._experiment_id is None:
            found = self._client.get_experiment_by_name(self._experiment)
            self._experiment_id = found.experiment_id if found else self._client.create_experiment(self._experiment)
        return self._experiment_id


def prepare_environment() -> None:
    """Set what MLflow's client reads and a user has not set; to be called before it is imported."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
