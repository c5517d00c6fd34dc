"""A run as it goes: what its folder says at any time, before there is a baseline, during the search, and afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from mft_ray.runs.folder import RunFolder, has_ended
from mft_ray.runs.live.steering import Queued, asked_to_end, at_work, queue, sign_of_end
from mft_ray.runs.reading import Run, read
from mft_ray.runs.records import Point, Trial
from mft_ray.training.job import Evaluation, best_index, read_progress
from mft_ray.utils.files import Damaged, read_json

RUNNING, INTERRUPTED = "running", "interrupted"
_LINES = 200
_LOG_BYTES = 64 * 1024


class Phase(StrEnum):
    """The stage that a search has reached."""

    DATA = "prepares data and model"
    FFT = "trains the FFT baseline"
    TRIALS = "runs trials"
    VERDICT = "judges on test examples"
    DONE = "has a verdict"


@dataclass(frozen=True)
class Live:
    """A run at one moment.

    Attributes:
        run: what its files say. Its trials are also those at work, with the best of their scores so far, best first,
            and its curves also those that still grow.
        phase: the stage that it has reached.
        working: whether a process works on it now.
        running: identifiers of trials that have begun and not ended.
        asked: those of them that were asked to end.
        ends: whether it was asked to begin no more trials.
        queue: configurations that a person wants to have tried next.
        log: the last lines of progress.
    """

    run: Run
    phase: Phase
    working: bool
    running: frozenset[str]
    asked: frozenset[str]
    ends: bool
    queue: list[Queued]
    log: list[str]

    @property
    def ended(self) -> int:
        """Number of trials that have ended."""
        return len(self.run.trials) - sum(trial.trial_id in self.running for trial in self.run.trials)

    @property
    def wanted(self) -> int:
        """Number of trials that there are to be."""
        search = self.run.config.get("search")
        wanted = search.get("trials") if isinstance(search, dict) else None
        return max(int(wanted or 0), len(self.run.trials))


def read_live(root: Path) -> Live:
    """Read a run folder as it is now.

    Raises:
        UserError: it is no run folder, or a file in it is broken.
    """
    run, folder = read(root, so_far=True), RunFolder(root)
    working = at_work(folder)
    begun = sorted(path.parent for path in folder.trials.glob("*/config.json"))
    running = {out.name: read_progress(out) for out in begun if not has_ended(out)}
    at_it = [_at_it(folder.trial(name), history, working, run) for name, history in running.items()]
    trials = [trial for trial in run.trials if trial.trial_id not in running] + [trial for trial in at_it if trial]
    # Sorting is stable: of equals the order of the leaderboard stays.
    trials.sort(key=lambda trial: (trial.score is None, -(trial.score or 0.0)))
    curves = run.curves.model_copy(
        update={
            "fft": run.curves.fft or _points(read_progress(folder.fft)),
            "continued": run.curves.continued or _points(read_progress(folder.continued)),
            "trials": {**run.curves.trials, **{name: _points(history) for name, history in running.items()}},
        }
    )
    return Live(
        replace(run, trials=trials, curves=curves),
        _phase(folder, run),
        working,
        frozenset(running),
        frozenset(name for name in running if sign_of_end(folder.trial(name)).exists()),
        asked_to_end(folder),
        queue(folder),
        _log(folder.log),
    )


def state_of(root: Path) -> tuple[tuple[str, int, int], ...]:
    """Return what changes when a run does: the name, time and size of every file that `read_live` reads.

    Args:
        root: run folder.
    """
    return tuple(sorted(_looked_at(root)))


def _looked_at(root: Path) -> Iterator[tuple[str, int, int]]:
    folder = RunFolder(root)
    files = (folder.baseline, folder.leaderboard, folder.curves, folder.verdict, folder.log, folder.looks)
    begun = (folder.fft, folder.continued, *folder.trials.glob("*"))
    parts = (path / name for path in begun for name in ("config.json", "progress.json", "outcome.json", "error.json"))
    signs = (folder.asked_to_end, folder.queue, *folder.queue.glob("*.json"), *folder.trials.glob("*/end"))
    for path in (*files, *parts, *signs, root / "report.html", folder.work / "lock"):
        try:
            found = os.stat(path)
        except OSError:
            continue
        yield str(path), found.st_mtime_ns, found.st_size
    yield "at work", int(at_work(folder)), 0


def _at_it(out: Path, history: list[Evaluation], working: bool, run: Run) -> Trial | None:
    """Return a trial that has begun and not ended, with its best score so far; None if its folder has just gone."""
    try:
        settings = read_json(out / "config.json", dict)
    except (FileNotFoundError, Damaged):
        return None
    best = best_index(history)
    state = RUNNING if working else INTERRUPTED
    trial = Trial(trial_id=out.name, config=settings, status=state, stopped_reason=state)
    if history:
        last = history[-1]
        trial.step, trial.steps, trial.tokens, trial.seconds = last.step, last.step, last.tokens, last.seconds
    if best is not None and not run.scored_at_end:
        trial.step, trial.score = history[best].step, history[best].score
        fft = run.baseline.validation.score
        trial.delta_fft = None if fft is None else history[best].score - fft
    return trial


def _points(history: list[Evaluation]) -> list[Point]:
    return [Point.of(evaluation) for evaluation in history]


def _phase(folder: RunFolder, run: Run) -> Phase:
    if run.verdict is not None:
        return Phase.DONE
    if folder.looks.exists() or (folder.continued / "progress.json").exists():
        return Phase.VERDICT
    if folder.fft_model.exists():
        return Phase.TRIALS
    return Phase.FFT if (folder.data / "train").exists() else Phase.DATA


def _log(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_BYTES))
            return file.read().decode("utf-8", errors="replace").splitlines()[-_LINES:]
    except FileNotFoundError:
        return []
