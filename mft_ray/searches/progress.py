"""What a person sees while a search runs: which trial, what score against FFT, time left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray.tune

from mft_ray.config import EvaluationConfig, load_config
from mft_ray.config.params import describe
from mft_ray.errors import told
from mft_ray.models.names import TRACEBACK
from mft_ray.report.terminal import Outlook
from mft_ray.runs.folder import RunFolder
from mft_ray.searches.budget import Budget
from mft_ray.searches.repeated_errors import RepeatedErrors
from mft_ray.searches.restarts import Notices
from mft_ray.searches.trial_report import Ended, TuneResult, ended, from_tune
from mft_ray.training.job import StopReason
from mft_ray.utils.console import log, log_warning
from mft_ray.utils.files import read_json, write_json, write_text
from mft_ray.utils.formatting import duration, unit
from mft_ray.workers.failures import root_cause
from mft_ray.workers.pending import Waiting
from mft_ray.workers.progress import restarted

_NOTICE_S = 1.0


# The one of the search that this process runs.
_current: TrialProgress | None = None


def _of_this_session() -> ray.tune.Callback:
    """Return the progress of the search that this process runs; one that prints nothing where there is none."""
    return _current or ray.tune.Callback()


class TrialProgress(ray.tune.Callback):  # type: ignore[misc]
    """Print what trials do, against FFT.

    Tune saves its callbacks with an experiment and restores them with it. Of this one it gets back that of the session:
    the number of trials, what is kept of them and what they may spend may have been changed since.

    Args:
        total: trials of the search.
        steps: number of steps of one trial, at most.
        concurrent: trials that run at once.
        evaluation: what scores are.
        fft_score: the baseline on the same validation examples.
        fft_watched: the same by the metric that training is watched by.
        folder: folder of the run, whose configuration limits what trials may use.
        after_each: called when a trial has ended, so that the leaderboard is never behind.
        outlook: kept up to date, for whoever draws the search.

    Attributes:
        earlier: trials of the search that belong to Tune's earlier experiments.
        gave_up: why the search ends before its last trial; None as long as it does not.
        give_up: called when it does.
        begun: called when Tune has begun an experiment, and listens to signals.
    """

    earlier = 0

    def __init__(
        self,
        total: int,
        steps: int,
        concurrent: int,
        evaluation: EvaluationConfig,
        fft_score: float,
        fft_watched: float,
        folder: RunFolder,
        after_each: Callable[[], object],
        outlook: Outlook | None = None,
    ) -> None:
        self.total, self.steps, self.concurrent = total, steps, concurrent
        self.decides, self.fft_score = unit(evaluation.metric), fft_score
        self.unit, self.fft_watched = unit(evaluation.monitor), fft_watched
        self.folder, self.after_each = folder, after_each
        self.waiting = Waiting(log)
        self.outlook = outlook or Outlook()
        self.notices, self._noticed = Notices(), 0.0
        self.repeated = RepeatedErrors()
        self.gave_up: str | None = None
        self.give_up: Callable[[], object] = list
        self.begun: Callable[[], object] = list
        self.seconds: dict[str, float] = {}
        self.ended: list[float] = []
        global _current
        _current = self

    def __reduce__(self) -> tuple[Any, ...]:
        return _of_this_session, ()

    def setup(self, **info: Any) -> None:
        """Begin an experiment."""
        self.begun()
        self.seconds = {}
        search = load_config(self.folder.config).search
        self.budget, self.repeated.limit = Budget(search.budget, self.folder.work), search.same_errors

    def on_step_begin(self, **info: Any) -> None:
        """Say what trials wait for, if they do, and see whether time is up."""
        self.waiting()
        self.budget.check()
        if time.monotonic() - self._noticed >= _NOTICE_S:
            self._noticed = time.monotonic()
            self.outlook.left, self.outlook.waits = self._left(info["trials"]), "; ".join(self.waiting.now)
            for trial in info["trials"]:
                if trial.status == "RUNNING":
                    self._tell_notices(info["trials"], trial)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say what a trial tries."""
        self.seconds[trial.trial_id] = time.monotonic()
        self.notices.begin(self.folder.trial(trial.trial_id))
        log(f"{self._name(trials, trial)} starts: {describe(trial.config)}")

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: TuneResult, **info: Any) -> None:
        """Say how a trial stands against FFT."""
        self._tell_notices(trials, trial)
        report = from_tune(result)
        if isinstance(report, Ended):
            return
        now = report.evaluation
        if now.note:
            log(f"{self._name(trials, trial)}: {now.note}")
        self.budget.note(trial.trial_id, now.tokens)
        note = "" if now.eligible else f" (ratio still {now.ratio:.3f})"
        delta = now.delta if math.isfinite(now.delta) else now.score - self.fft_watched
        log(
            f"{self._name(trials, trial)} step {now.step}/{report.total_steps or self.steps}: "
            f"{self.unit.score(now.score)}, {self.unit.delta(delta)} against FFT{note}"
            f"{self._time_left(trials)}"
        )

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say that Tune starts a trial's driver anew."""
        log_warning(f"{self._name(trials, trial)}: {restarted('its driver has died')}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say how a trial ended."""
        report = ended(trial.last_result)
        if report.reason == StopReason.FAILED:
            self.on_trial_error(iteration, trials, trial)
            return
        self._note_end(trial)
        result = f"best {self.decides.score(report.best)}, {self.decides.delta(report.best - self.fft_score)}"
        shown = f"{result} against FFT" if math.isfinite(report.best) else "no score"
        log(f"{self._name(trials, trial)} ends ({report.reason}): {shown}{self._time_left(trials)}")
        self.after_each()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say that a trial failed; the search goes on."""
        out = self.folder.trial(trial.trial_id)
        if not (out / "error.json").exists():  # its driver failed, for good, and could not say why
            error = trial.get_error()
            write_text(out / TRACEBACK, str(error))
            raised = isinstance(error, ray.exceptions.RayTaskError)
            write_json(out / "error.json", {"error": f"its driver failed: {root_cause(error)}", "raised": raised})
        self._note_end(trial)
        reason = read_json(out / "error.json", lambda content: str(content["error"]))
        trace = out / TRACEBACK
        where = trace if trace.exists() else None
        if _raised(out):
            self.gave_up = self.gave_up or self.repeated.note(out.name, reason, where)
        goes_on = "The search ends" if self.gave_up else "The search goes on"
        log_warning(f"{self._name(trials, trial)} failed: {told(reason, where).rstrip('.')}. {goes_on}.")
        self.after_each()
        if self.gave_up:
            self.give_up()

    def _tell_notices(self, trials: list[Any], trial: Any) -> None:
        for reason in self.notices.new(self.folder.trial(trial.trial_id)):
            log_warning(f"{self._name(trials, trial)}: {restarted(reason)}")

    def _note_end(self, trial: Any) -> None:
        now = time.monotonic()
        self.ended.append(now - self.seconds.get(trial.trial_id, now))

    def _name(self, trials: list[Any], trial: Any) -> str:
        return f"trial {self.earlier + trials.index(trial) + 1}/{self.total}"

    def _time_left(self, trials: list[Any]) -> str:
        return f", {left}" if (left := self._left(trials)) else ""

    def _left(self, trials: list[Any]) -> str:
        now = time.monotonic()
        left = self.budget.left()
        if not self.ended:
            return left
        mean = sum(self.ended) / len(self.ended)
        running = [now - self.seconds[trial.trial_id] for trial in trials if trial.status == "RUNNING"]
        over = sum(trial.status in ("TERMINATED", "ERROR") for trial in trials)
        waiting = self.total - self.earlier - over - len(running)
        seconds = sum(max(mean - spent, 0) for spent in running) + max(waiting, 0) * mean
        return ", ".join(filter(None, (f"about {duration(seconds / self.concurrent)} of trials left", left)))


def _raised(out: Path) -> bool:
    return read_json(out / "error.json", lambda content: bool(content.get("raised")))
