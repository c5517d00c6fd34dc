"""What trackers are told: FFT, continued FFT, every trial and the verdict, as the run folder has them at one moment."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mft_ray.config.params import Params
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.records import Baseline, Measured, Verdict
from mft_ray.training.job import Evaluation, Outcome, StopReason, read_progress
from mft_ray.utils.files import Damaged, Signature, read_json, signature

FFT, CONTINUED, VERDICT = "fft", "continued_fft", "verdict"
_FILES = ("config.json", "progress.json", "outcome.json", "error.json")
_Signatures = tuple[Signature | None, ...]


@dataclass(frozen=True)
class End:
    """How a training has ended.

    Attributes:
        reason: a `StopReason`.
        score: best validation score by the metric that decides; None if it has none.
        delta_fft: the same minus FFT's.
        step: optimizer step of that score, or the last one.
    """

    reason: str
    score: float | None
    delta_fft: float | None
    step: int


@dataclass(frozen=True)
class Training:
    """FFT, continued FFT or a trial, as far as it is.

    Attributes:
        name: ``fft``, ``continued_fft`` or the trial's identifier.
        params: what tells it apart: its method, and what the search chose.
        history: its evaluations, in order.
        began: when it would have begun without interruptions, in seconds since the epoch.
        end: how it has ended; None as long as it goes on, or is interrupted.
    """

    name: str
    params: Params
    history: tuple[Evaluation, ...]
    began: float
    end: End | None


@dataclass(frozen=True)
class Snapshot:
    """A search at one moment.

    Attributes:
        trainings: FFT, continued FFT and the trials that have begun.
        verdict: None before there is one.
    """

    trainings: tuple[Training, ...]
    verdict: Verdict | None = None


class SnapshotReader:
    """Reads a run folder again and again; what has not changed in between is the same object again.

    Args:
        folder: run folder.
        method: method of the search.
    """

    def __init__(self, folder: RunFolder, method: str) -> None:
        self._folder, self._method = folder, method
        self._known: dict[str, tuple[_Signatures, Training]] = {}
        self._verdict: tuple[Signature, Verdict] | None = None

    def read(self) -> Snapshot:
        """Return what is in the folder now."""
        found = list(self._trainings())
        self._known = {training.name: (signed, training) for signed, training in found}
        return Snapshot(tuple(training for _, training in found), self._read_verdict())

    def _trainings(self) -> Iterator[tuple[_Signatures, Training]]:
        folder = self._folder
        baseline = signature(folder.baseline)
        its = Baseline.load(folder.baseline) if baseline else None
        for name, out, measured in (
            (FFT, folder.fft, its),
            (CONTINUED, folder.continued, its.continued if its else None),
        ):
            own = _signatures(out)
            signed = (*own, baseline)
            if any(own) or measured is not None:
                yield signed, self._cached(name, signed) or _baseline_training(name, out, measured, its)
        for config in sorted(folder.trials.glob("*/config.json")):
            out = config.parent
            signed = (*_signatures(out), baseline)
            try:
                yield signed, self._cached(out.name, signed) or _trial(out, self._method, its)
            except (FileNotFoundError, Damaged):
                continue  # it is being deleted, or replaced: next time

    def _cached(self, name: str, signed: _Signatures) -> Training | None:
        known = self._known.get(name)
        return known[1] if known and known[0] == signed else None

    def _read_verdict(self) -> Verdict | None:
        signed = signature(self._folder.verdict)
        if signed is None:
            return None
        if self._verdict is None or self._verdict[0] != signed:
            self._verdict = (signed, Verdict.load(self._folder.verdict))
        return self._verdict[1]


def _signatures(out: Path) -> _Signatures:
    return tuple(signature(out / name) for name in _FILES)


def _history(out: Path) -> tuple[Evaluation, ...]:
    path = out / "outcome.json"
    return tuple(Outcome.load(path).history if path.exists() else read_progress(out))


def _began(out: Path, history: tuple[Evaluation, ...]) -> float:
    """Return when a training would have begun: what an evaluation says is how long before it that was."""
    written = next((path for path in (out / "progress.json", out / "outcome.json") if path.exists()), out)
    since = history[-1].seconds if history else 0.0
    return (written.stat().st_mtime if written.exists() else 0.0) - since


def _baseline_training(name: str, out: Path, measured: Measured | None, baseline: Baseline | None) -> Training:
    """Return FFT or continued FFT, which has ended once it is scored."""
    history, end = _history(out), None
    if measured is not None:
        score = measured.validation.score if measured.validation else None
        delta = None if baseline is None else _delta(score, baseline)
        end = End(measured.stopped or StopReason.COMPLETED, score, delta, measured.best_step or 0)
    return Training(name, {"method": name}, history, _began(out, history), end)


def _trial(out: Path, method: str, baseline: Baseline | None) -> Training:
    params = {"method": method, **read_json(out / "config.json", dict)}
    history, end = _history(out), None
    if (out / "outcome.json").exists():
        outcome = Outcome.load(out / "outcome.json")
        best = outcome.best_evaluation or outcome.history[-1]
        score = outcome.score if outcome.score is not None and math.isfinite(outcome.score) else None
        end = End(outcome.stopped_reason, score, _delta(score, baseline), best.step)
    elif (out / "error.json").exists():
        end = End(StopReason.FAILED, None, None, history[-1].step if history else 0)
    return Training(out.name, params, history, _began(out, history), end)


def _delta(score: float | None, baseline: Baseline | None) -> float | None:
    fft = baseline.validation.score if baseline is not None else None
    return None if score is None or fft is None else score - fft
