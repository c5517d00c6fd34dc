"""Did the mask make the model better, and is the gain real?"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from mft_ray.evaluation.statistics import LEVEL, Paired, holm, paired, right_or_wrong
from mft_ray.report.units import Unit, p_value, product, unit


@dataclass(frozen=True)
class Rules:
    """How scores are compared.

    Attributes:
        resamples: of the bootstrap.
        real_test: of scores that are not right or wrong.
        sources: of each test example, where several share one.
    """

    resamples: int = 10_000
    real_test: Literal["paired_t", "wilcoxon"] = "paired_t"
    sources: Sequence[Hashable] | None = None


def judge(
    metric: str,
    mft: Sequence[float],
    fft: Sequence[float],
    continued: Sequence[float] | None,
    rules: Rules,
    method: str = "mft",
    rival: tuple[str, Sequence[float]] | None = None,
) -> dict[str, Any]:
    """Compare per-example test scores and say what they show.

    A difference is believed when the paired bootstrap interval lies on one side of zero and the paired test agrees
    (exact McNemar for right-or-wrong metrics). "Beats FFT" is said of what is better than FFT and better than FFT that
    was trained on for as many tokens: both must hold, so neither test needs a correction for the other.

    Args:
        metric: of the scores; higher is better.
        mft: the scores of the masked model, or what another method made of it.
        fft: the FFT model's, on the same examples in the same order.
        continued: continued FFT's; None if it was not run.
        rules: of the comparison.
        method: that made the judged model.
        rival: the best of other methods by validation, and its scores; None if none was run.

    Returns:
        The content of ``verdict.json``, but for the trial's id.
    """
    versus = partial(_versus, mft, rules=rules)
    against_fft = versus(fft)
    against_continued = versus(continued) if continued else None
    against_rival = versus(rival[1]) if rival else None
    gain = better(against_fft)
    beats_continued = better(against_continued) if against_continued else None
    return {
        "method": method,
        "metric": metric,
        "split": "test",
        "n": against_fft.n,
        "sources": against_fft.sources,
        "fft": against_fft.baseline,
        "mft": against_fft.candidate,
        "delta": against_fft.delta,
        "ci95": list(against_fft.ci95),
        "p_value": against_fft.p_value,
        "test": against_fft.test,
        "confidence": 0.95,
        "beats_fft": gain and beats_continued is not False,
        "better_than_fft": gain,
        "continued_fft": against_continued.baseline if against_continued else None,
        "delta_continued_fft": against_continued.delta if against_continued else None,
        "ci95_continued_fft": list(against_continued.ci95) if against_continued else None,
        "p_value_continued_fft": against_continued.p_value if against_continued else None,
        "beats_continued_fft": beats_continued,
        "rival": _rival(rival[0], against_rival) if rival and against_rival else None,
        "detectable": against_fft.detectable,
        "needed": against_fft.needed,
        "sentence": _sentence(metric, method, against_fft, against_continued, rival and rival[0], against_rival),
    }


def compare(metric: str, mft: Sequence[float], fft: Sequence[float], rules: Rules) -> dict[str, Any]:
    """Return one row of the verdict's extra metrics."""
    found = _versus(mft, fft, rules)
    return {
        "metric": metric,
        "n": found.n,
        "fft": found.baseline,
        "mft": found.candidate,
        "delta": found.delta,
        "ci95": list(found.ci95),
        "p_value": found.p_value,
        "test": found.test,
        "detectable": found.detectable,
    }


def warn(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Say of several rows of `compare` which are worse than FFT beyond noise, as many as there are (Holm).

    Returns:
        The rows with ``p_holm`` and ``worse``.
    """
    adjusted = holm([row["p_value"] for row in rows])
    return [
        {**row, "p_holm": p, "worse": row["ci95"][1] < 0 and p < LEVEL} for row, p in zip(rows, adjusted, strict=True)
    ]


def better(result: Paired) -> bool:
    """Say whether a gain is believed: interval and test must agree."""
    return result.ci95[0] > 0 and result.p_value < LEVEL


def _versus(mine: Sequence[float], theirs: Sequence[float], rules: Rules) -> Paired:
    return paired(
        mine,
        theirs,
        binary=right_or_wrong(mine, theirs),
        resamples=rules.resamples,
        real_test=rules.real_test,
        sources=rules.sources,
    )


def _worse(result: Paired) -> bool:
    return result.ci95[1] < 0 and result.p_value < LEVEL


def _rival(method: str, against: Paired) -> dict[str, Any]:
    return {
        "method": method,
        "score": against.baseline,
        "delta": against.delta,
        "ci95": list(against.ci95),
        "p_value": against.p_value,
        "beaten": better(against),
    }


def _sentence(
    metric: str,
    method: str,
    fft: Paired,
    continued: Paired | None,
    rival: str | None,
    against_rival: Paired | None,
) -> str:
    shown, made = unit(metric), product(method)
    judged = {"mask": "masked model", "adapter": "model with the adapter"}.get(made, made)
    facts = (
        f"on {fft.n:,} untouched test examples the {judged} scores {shown.score(fft.candidate)} and FFT "
        f"{shown.score(fft.baseline)}: {_difference(shown, fft)}"
    )
    if better(fft):
        start = "Yes" if continued is None or better(continued) else "Only in part"
        end = "a gain over FFT beyond chance"
    elif _worse(fft):
        start, end = "No", f"the {made} is worse than FFT"
    else:
        start, end = "No", "no gain over FFT beyond chance"
    said = [f"{start}: {facts}, {end}."]
    if continued is not None:
        said.append(_against("FFT continued for the same number of tokens", shown, continued))
    if rival is not None and against_rival is not None:
        said.append(_against(f"the best rival on validation, {rival},", shown, against_rival))
    if not better(fft) and not _worse(fft):
        said.append(_power(shown, fft))
    return " ".join(said)


def _against(whom: str, shown: Unit, against: Paired) -> str:
    end = "no difference"
    if better(against):
        end = "better"
    elif _worse(against):
        end = "worse"
    score = shown.score(against.baseline)
    return f"Against {whom} ({score}) it is {_difference(shown, against)}, {end} beyond chance."


def _power(shown: Unit, fft: Paired) -> str:
    """What so many examples could have shown, and how many it would take."""
    if fft.detectable == 0:
        return "The two differ on no example."
    text = (
        f"{fft.n:,} examples that differ as these do cannot show a gain of less than {shown.distance(fft.detectable)}"
    )
    if fft.delta > 0 and fft.needed:
        text += f"; one as large as the one seen would take about {_rounded(fft.needed):,}"
    return text + "."


def _rounded(count: int) -> int:
    """Two digits: more would promise too much."""
    return int(float(f"{count:.2g}"))


def _difference(shown: Unit, against: Paired) -> str:
    interval = shown.interval(against.ci95)
    return f"{shown.delta(against.delta)} (95% interval {interval}, p {_equals(against.p_value)})"


def _equals(value: float) -> str:
    text = p_value(value)
    return text if text.startswith("<") else f"= {text}"
