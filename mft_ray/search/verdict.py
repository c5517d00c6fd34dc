"""Did the mask make the model better, and is the gain real?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mft_ray.evaluation.metrics import BINARY_METRICS
from mft_ray.evaluation.statistics import Paired, paired, right_or_wrong
from mft_ray.report.units import p_value, product, unit

LEVEL = 0.05


def judge(
    metric: str,
    mft: Sequence[float],
    fft: Sequence[float],
    continued: Sequence[float] | None,
    resamples: int,
    method: str = "mft",
) -> dict[str, Any]:
    """Compare per-example test scores and say what they show.

    A gain over FFT is believed when the paired bootstrap interval of the difference lies above zero and
    the paired test agrees (exact McNemar for right-or-wrong metrics, paired t for others).

    Args:
        metric: of the scores; higher is better.
        mft: the scores of the masked model, or what another method made of it.
        fft: the FFT model's, on the same examples in the same order.
        continued: continued FFT's; None if it was not run.
        resamples: of the bootstrap.
        method: that made the judged model.

    Returns:
        The content of ``verdict.json``, but for the trial's id.
    """
    binary = metric in BINARY_METRICS
    against_fft = paired(mft, fft, binary=binary, resamples=resamples)
    against_continued = paired(mft, continued, binary=binary, resamples=resamples) if continued else None
    beats_continued = better(against_continued) if against_continued else None
    return {
        "method": method,
        "metric": metric,
        "split": "test",
        "n": against_fft.n,
        "fft": against_fft.baseline,
        "mft": against_fft.candidate,
        "delta": against_fft.delta,
        "ci95": list(against_fft.ci95),
        "p_value": against_fft.p_value,
        "test": against_fft.test,
        "confidence": 0.95,
        "beats_fft": better(against_fft),
        "continued_fft": against_continued.baseline if against_continued else None,
        "delta_continued_fft": against_continued.delta if against_continued else None,
        "ci95_continued_fft": list(against_continued.ci95) if against_continued else None,
        "p_value_continued_fft": against_continued.p_value if against_continued else None,
        "beats_continued_fft": beats_continued,
        "sentence": _sentence(metric, product(method), against_fft, against_continued),
    }


def compare(metric: str, mft: Sequence[float], fft: Sequence[float], resamples: int) -> dict[str, Any]:
    """Return one row of the verdict's extra metrics."""
    result = asdict(paired(mft, fft, binary=right_or_wrong(mft, fft), resamples=resamples))
    return {
        "metric": metric,
        "n": result["n"],
        "fft": result["baseline"],
        "mft": result["candidate"],
        **{name: result[name] for name in ("delta", "p_value", "test")},
        "ci95": list(result["ci95"]),
    }


def better(result: Paired) -> bool:
    """Say whether a gain is believed: interval and test must agree."""
    return result.ci95[0] > 0 and result.p_value < LEVEL


def _worse(result: Paired) -> bool:
    return result.ci95[1] < 0 and result.p_value < LEVEL


def _sentence(metric: str, made: str, fft: Paired, continued: Paired | None) -> str:
    shown = unit(metric)
    judged = {"mask": "masked model", "adapter": "model with the adapter"}.get(made, made)
    facts = (
        f"on {fft.n:,} untouched test examples the {judged} scores {shown.score(fft.candidate)} and FFT "
        f"{shown.score(fft.baseline)}: {shown.delta(fft.delta)} (95% interval {shown.interval(fft.ci95)}, "
        f"p {_equals(fft.p_value)})"
    )
    if better(fft):
        start = "Yes" if continued is None or better(continued) else "Only in part"
        end = "a gain over FFT beyond chance"
    elif _worse(fft):
        start, end = "No", f"the {made} is worse than FFT"
    else:
        start, end = "No", "no gain over FFT beyond chance"
    if continued is None:
        return f"{start}: {facts}, {end}."
    rival = (
        f"Against FFT continued for the same number of tokens ({shown.score(continued.baseline)}) it is "
        f"{shown.delta(continued.delta)} (95% interval {shown.interval(continued.ci95)}, "
        f"p {_equals(continued.p_value)}), "
    )
    if better(continued):
        rival += "better beyond chance."
    elif _worse(continued):
        rival += "worse beyond chance."
    else:
        rival += "no difference beyond chance."
    return f"{start}: {facts}, {end}. {rival}"


def _equals(value: float) -> str:
    text = p_value(value)
    return text if text.startswith("<") else f"= {text}"
