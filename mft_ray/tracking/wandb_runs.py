"""Weights & Biases: a run for FFT, continued FFT, every trial and the verdict, in one group."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mft_ray.config import WandbConfig
from mft_ray.config.params import Params
from mft_ray.runs.folder import RunFolder
from mft_ray.tracking.sent import SentRun
from mft_ray.tracking.service import Numbers, Service
from mft_ray.tracking.snapshot import CONTINUED, FFT, VERDICT

_WAIT_S = 60
# Nothing but what is logged leaves the machine: neither how this process was called nor what else runs on it.
_QUIET = {
    "silent": True,
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
    "init_timeout": _WAIT_S,
    "finish_timeout": _WAIT_S,
    "finish_timeout_raises": True,
}


class Wandb(Service):
    """Sends a search to Weights & Biases, or writes it to ``RUN/work/wandb`` with ``WANDB_MODE=offline``.

    Args:
        config: project.
        folder: run folder.
        label: name of the search.
    """

    name = "Weights & Biases"

    def __init__(self, config: WandbConfig, folder: RunFolder, label: str) -> None:
        target = f"{config.entity or ''}/{config.project}"
        super().__init__(folder, label, target, config.artifacts)
        prepare_environment()
        self._config = config
        self._open: dict[str, Any] = {}
        # What its library has taken it writes later: killed with it, a run on the disk would lack its last evaluations,
        # and nobody can tell. The server can.
        self.live = not offline()

    def begin(self, name: str, params: Params, known: SentRun | None) -> SentRun:
        """Make a run, or go on with it."""
        # The service may have a run that was made and not noted: its identifier is the same.
        sent = known or SentRun(run_id=f"{self.sent.token}-{name}".replace("_", "-"))
        if name not in self._open:
            self._open[name] = self._init(sent.run_id, name, params)
            if self.live:
                sent.step = self._open[name].step - 1  # what has arrived; -1 of a new one
        return sent

    def _init(self, run_id: str, name: str, params: Params) -> Any:
        import wandb

        self._folder.work.mkdir(parents=True, exist_ok=True)
        try:
            return wandb.init(
                entity=self._config.entity,
                project=self._config.project,
                dir=str(self._folder.work),
                group=self.group,
                job_type=name if name in (FFT, CONTINUED, VERDICT) else "trial",
                id=run_id,
                name=name,
                config=dict(params),
                allow_val_change=True,
                resume="allow",
                reinit="create_new",
                settings=wandb.Settings(**_QUIET),
            )
        except Exception:
            # Its library would call a run that could not be begun "in use" from now on.
            for each in list(self._open):
                with suppress(Exception):
                    self._open.pop(each).finish(exit_code=1)
            wandb.teardown()
            raise

    def log(self, sent: SentRun, name: str, rows: Sequence[Numbers]) -> None:
        """Send evaluations."""
        for step, time, values in rows:
            self._open[name].log({**values, "_timestamp": time}, step=step)

    def summarize(self, sent: SentRun, name: str, numbers: dict[str, float], facts: dict[str, str]) -> None:
        """Put final scores and texts into the run's summary."""
        self._open[name].summary.update({**numbers, **facts})

    def send_files(self, sent: SentRun, name: str, files: dict[str, Path]) -> None:
        """Send files as one artifact; it gets a new version only where they differ."""
        import wandb

        if not files:
            return
        artifact = wandb.Artifact(f"mask-{self.sent.token}", type="mask")
        for place, path in files.items():
            artifact.add_file(str(path), name=place)
        self._open[name].log_artifact(artifact)

    def end(self, sent: SentRun, name: str, failed: bool) -> None:
        """End a run as finished or failed, once all of it is there."""
        if name in self._open:
            self._open.pop(name).finish(exit_code=int(failed))

    def close(self) -> None:
        """Let go of runs that have not ended."""
        for name in list(self._open):
            self._open.pop(name).finish(exit_code=1)


def prepare_environment() -> None:
    """Set what wandb reads and a user has not set; to be called before it is imported."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # to its makers


def offline() -> bool:
    """Whether a user wants nothing to be sent, for now or at all."""
    return os.environ.get("WANDB_MODE", "").lower() in ("offline", "dryrun", "disabled")
