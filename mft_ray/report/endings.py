"""Why a trial ended, in sentences, with the numbers that it was decided by."""

from __future__ import annotations

from mft_ray.report.leaderboard import reason
from mft_ray.runs.reading import Run
from mft_ray.runs.records import Trial
from mft_ray.training.job import Stop, StopReason
from mft_ray.utils import formatting as units

_EXPLAINED = {
    "completed": "it used up all its steps",
    "below_fft": "it would have ended below FFT, by all that its curve so far says",
    "plateau": "it no longer improved beyond noise",
    "target": "it was surely ahead of FFT by search.stop.target",
    "pruned": "Ray Tune ended it",
    "failed": "it failed",
    "cancelled": "the budget was spent, or a person ended it",
    "running": "it is being trained",
    "interrupted": "the search was interrupted; --resume goes on with it",
}


def why(trial: Trial) -> str:
    """Return why a trial ended, in a sentence without its numbers."""
    return _EXPLAINED.get(trial.stopped_reason or "", reason(trial))


def numbers(trial: Trial, run: Run) -> str:
    """Return what a rule went by when it ended a trial; empty where none did, or it was not recorded.

    Args:
        trial: the trial.
        run: its run, which knows what metric trials are watched by.
    """
    stop = trial.stop
    if stop is None or stop.reason not in _SAID:
        return ""
    unit = units.unit(run.while_training.baseline.metric)
    return f"Decided at step {stop.step:,} of {stop.total_steps:,}: {_SAID[stop.reason](stop, unit)}"


def ended_early(run: Run) -> list[tuple[str, str, str]]:
    """Return the trials that a rule ended: identifier, why, and the numbers behind it."""
    return [(trial.trial_id, why(trial), numbers(trial, run)) for trial in run.trials if trial.stop is not None]


def _below_fft(stop: Stop, unit: units.Unit) -> str:
    return (
        f"its best difference to FFT on the same validation examples was {unit.delta(stop.best)}, and going on as "
        f"between its last two evaluations it would have ended at {unit.delta(stop.projected)}. The better of the two "
        f"and {_noise(stop, unit)} make {unit.delta(stop.value + stop.noise)}, which is still below FFT."
    )


def _target(stop: Stop, unit: units.Unit) -> str:
    return (
        f"its difference to FFT on the same validation examples was {unit.delta(stop.value)}. Less "
        f"{_noise(stop, unit)} it is {unit.delta(stop.value - stop.noise)}, and "
        f"search.stop.target asks for {unit.delta(stop.limit)}."
    )


def _plateau(stop: Stop, unit: units.Unit) -> str:
    beyond = f" by more than the noise, {_noise(stop, unit)}" if stop.noise else ""
    return (
        f"of its last {stop.evaluations} evaluations the best scored {unit.score(stop.value)}, and the best before "
        f"them {unit.score(stop.limit)}, which none of them exceeded{beyond}."
    )


def _noise(stop: Stop, unit: units.Unit) -> str:
    if stop.confidence is None:
        return f"one standard error of the difference to FFT ({unit.distance(stop.noise)})"
    return f"the noise of that difference at {100 * stop.confidence:.4g} % confidence ({unit.distance(stop.noise)})"


_SAID = {StopReason.BELOW_FFT: _below_fft, StopReason.TARGET: _target, StopReason.PLATEAU: _plateau}
