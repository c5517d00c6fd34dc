"""The numbers of a search under the names that every tracker shows them by."""

from __future__ import annotations

import math

from mft_ray.runs.records import Verdict
from mft_ray.tracking.snapshot import End
from mft_ray.training.job import Evaluation

SCORE, DELTA = "final/score", "final/delta_fft"


def of_evaluation(evaluation: Evaluation) -> dict[str, float]:
    """Return what an evaluation says, without what it does not know.

    Args:
        evaluation: of FFT, continued FFT or a trial.
    """
    named: dict[str, float | None] = {
        "validation/score": evaluation.score,
        "validation/standard_error": evaluation.standard_error,
        "validation/delta_fft": evaluation.delta,
        "training/loss": evaluation.loss,
        "training/tokens": evaluation.tokens,
        "training/seconds": evaluation.seconds,
        "training/memory_bytes": evaluation.memory,
        "mask/ratio": evaluation.ratio,
    }
    return _known(named)


def of_end(end: End) -> dict[str, float]:
    """Return the score that a training has ended with, and its difference to FFT's; empty if it has none.

    Args:
        end: how it has ended.
    """
    return _known({SCORE: end.score, DELTA: end.delta_fft})


def of_verdict(verdict: Verdict) -> dict[str, float]:
    """Return a verdict's numbers, all of the test split.

    Args:
        verdict: verdict of a search.
    """
    low, high = verdict.ci95
    named: dict[str, float | None] = {
        "test/fft": verdict.fft,
        "test/continued_fft": verdict.continued_fft,
        f"test/{verdict.method}": verdict.mft,
        "test/delta_fft": verdict.delta,
        "test/delta_fft_low": low,
        "test/delta_fft_high": high,
        "test/p_value": verdict.p_value,
        "test/delta_continued_fft": verdict.delta_continued_fft,
        "test/n": verdict.n,
        "test/beats_fft": float(verdict.beats_fft),
    }
    return _known(named)


def _known(named: dict[str, float | None]) -> dict[str, float]:
    return {name: float(value) for name, value in named.items() if value is not None and math.isfinite(value)}
