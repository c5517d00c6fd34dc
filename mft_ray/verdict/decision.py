"""Did the mask make the model better, and is the gain real?"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mft_ray.config import METHODS
from mft_ray.evaluation.statistics import Paired, holm, loss_believed, paired, right_or_wrong
from mft_ray.runs.records import MetricComparison, Rival, SeedSpread, Verdict
from mft_ray.utils.formatting import Unit, p_value, unit

# What a verdict may have to do without, as ``not_run`` names it; rivals are "rival METHOD".
CONTINUED, SEEDS = "continued_fft", "other seeds"


@dataclass(frozen=True)
class Rules:
    """How scores are compared.

    Attributes:
        resamples: number of resamples of the bootstrap.
        real_test: test of scores that are not right or wrong.
        sources: source of each test example, where several share one; scores may be of the first so many.
    """

    resamples: int = 10_000
    real_test: Literal["paired_t", "wilcoxon"] = "paired_t"
    sources: Sequence[Hashable] | None = None


@dataclass(frozen=True)
class Evidence:
    """What a verdict rests on. Scores are of the same test examples in the same order; higher is better.

    Attributes:
        metric: metric of the scores.
        mft: scores of the masked model, or of what another method made.
        fft: the FFT model's.
        continued: continued FFT's; None if it was not run.
        rival: the best of other methods by validation, and its scores; None if none was run.
        method: that made the judged model.
        seeds: what `mft_ray.verdict.seeds.spread` returned; None if there is one seed.
        other_tasks: rows of `warn`.
        earlier_looks: how often the test examples were looked at for other trials.
        not_run: what was wanted and could not be run, such as `CONTINUED`, and why.
    """

    metric: str
    mft: Sequence[float]
    fft: Sequence[float]
    continued: Sequence[float] | None = None
    rival: tuple[str, Sequence[float]] | None = None
    method: str = "mft"
    seeds: SeedSpread | None = None
    other_tasks: Sequence[MetricComparison] = ()
    earlier_looks: int = 0
    not_run: Mapping[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether all has been run that a claim to beat FFT rests on."""
        return CONTINUED not in self.not_run and not (self.seeds is None and SEEDS in self.not_run)


def judge(evidence: Evidence, rules: Rules) -> Verdict:
    """Say what the evidence shows.

    A difference is believed when the paired bootstrap interval lies on one side of zero and the paired test agrees
    (exact McNemar for right-or-wrong scores). "Beats FFT" is said of what is better than FFT, and better than FFT that
    was trained on for as many tokens, and whose gain is larger than what a seed changes, as far as these were wanted.
    All must hold, so none needs a correction for the others; where one could not be run, nothing is claimed.

    Args:
        evidence: scores and what else is known.
        rules: rules of the comparison.

    Returns:
        The verdict, but for what only the search knows: which trial was judged, and how it was chosen.
    """
    fft = _versus(evidence.mft, evidence.fft, rules)
    continued = _versus(evidence.mft, evidence.continued, rules) if evidence.continued else None
    rival = _versus(evidence.mft, evidence.rival[1], rules) if evidence.rival else None
    noise = bool(evidence.seeds and evidence.seeds.within_noise)
    return Verdict(
        method=evidence.method,
        metric=evidence.metric,
        n=fft.n,
        sources=fft.sources,
        fft=fft.baseline,
        mft=fft.candidate,
        delta=fft.delta,
        ci95=fft.ci95,
        p_value=fft.p_value,
        test=fft.test,
        beats_fft=fft.better and (continued is None or continued.better) and not noise and evidence.complete,
        better_than_fft=fft.better,
        worse_than_fft=fft.worse,
        continued_fft=continued.baseline if continued else None,
        delta_continued_fft=continued.delta if continued else None,
        ci95_continued_fft=continued.ci95 if continued else None,
        p_value_continued_fft=continued.p_value if continued else None,
        beats_continued_fft=continued.better if continued else None,
        rival=_rival(evidence.rival[0], rival) if evidence.rival and rival else None,
        detectable=fft.detectable,
        needed=fft.needed,
        seeds=evidence.seeds,
        other_tasks=list(evidence.other_tasks),
        not_run=dict(evidence.not_run),
        sentence=_sentence(evidence, fft, continued, rival),
        trial_id="",
    )


def compare(metric: str, mft: Sequence[float], fft: Sequence[float], rules: Rules) -> MetricComparison:
    """Return one row of the verdict's extra metrics."""
    found = _versus(mft, fft, rules)
    return MetricComparison(
        metric=metric,
        n=found.n,
        fft=found.baseline,
        mft=found.candidate,
        delta=found.delta,
        ci95=found.ci95,
        p_value=found.p_value,
        test=found.test,
        detectable=found.detectable,
    )


def warn(rows: Sequence[MetricComparison]) -> list[MetricComparison]:
    """Say of several rows of `compare` which are worse than FFT beyond noise, as many as there are (Holm).

    Returns:
        The rows with ``p_holm`` and ``worse``.
    """
    adjusted = holm([1.0 if row.p_value is None else row.p_value for row in rows])
    return [
        row.model_copy(update={"p_holm": p, "worse": row.ci95 is not None and loss_believed(row.ci95, p)})
        for row, p in zip(rows, adjusted, strict=True)
    ]


def _versus(mine: Sequence[float], theirs: Sequence[float], rules: Rules) -> Paired:
    return paired(
        mine,
        theirs,
        binary=right_or_wrong(mine, theirs),
        resamples=rules.resamples,
        real_test=rules.real_test,
        sources=rules.sources and rules.sources[: len(mine)],
    )


def _rival(method: str, against: Paired) -> Rival:
    return Rival(
        method=method,
        score=against.baseline,
        delta=against.delta,
        ci95=against.ci95,
        p_value=against.p_value,
        beaten=against.better,
    )


def _sentence(evidence: Evidence, fft: Paired, continued: Paired | None, rival: Paired | None) -> str:
    shown, made = unit(evidence.metric), METHODS[evidence.method].makes
    judged = {"mask": "masked model", "adapter": "model with the adapter"}.get(made, made)
    sources = "" if fft.sources == fft.n else f" of {fft.sources:,} sources"
    facts = (
        f"on {fft.n:,} untouched test examples{sources} the {judged} scores {shown.score(fft.candidate)} and FFT "
        f"{shown.score(fft.baseline)}: {_difference(shown, fft)}"
    )
    seeds = evidence.seeds
    if fft.better:
        start = "Yes"
        if seeds and seeds.within_noise:
            start = "Not surely"
        if not evidence.complete:
            start = "Not shown"
        if continued is not None and not continued.better:
            start = "Only in part"
        end = "a gain over FFT beyond chance"
    elif fft.worse:
        start, end = "No", f"the {made} is worse than FFT"
    else:
        start, end = "No", "no gain over FFT beyond chance"
    said = [f"{start}: {facts}, {end}."]
    if continued is not None:
        said.append(_against("FFT continued for the same number of tokens", shown, continued))
    said += _not_run(evidence, gain=fft.better)
    if evidence.rival is not None and rival is not None:
        said.append(_against(f"the best rival on validation, {evidence.rival[0]}", shown, rival))
    if seeds:
        said.append(_noise(shown, seeds))
    if not fft.better and not fft.worse:
        said.append(_power(shown, fft))
    for row in evidence.other_tasks:
        if row.worse:
            said.append(_warning(made, row))
    if evidence.earlier_looks:
        said.append(
            f"This was look {evidence.earlier_looks + 1} at the test examples: chance gets by more easily than the "
            "numbers say."
        )
    return " ".join(said)


def _not_run(evidence: Evidence, gain: bool) -> list[str]:
    said = []
    for name, why in evidence.not_run.items():
        whom = "FFT continued for the same number of tokens" if name == CONTINUED else name
        said.append(f"{whom[0].upper()}{whom[1:]} could not be run: {why.partition('. ')[0].rstrip('.')}.")
    if gain and not evidence.complete:
        said.append("Without that, this is a gain over FFT alone, and no claim to beat it.")
    return said


def _noise(shown: Unit, seeds: SeedSpread) -> str:
    gain = seeds.delta
    text = (
        f"Over {seeds.n} seeds the gain over FFT is {shown.delta(gain.mean)} on average (standard deviation "
        f"{shown.number(gain.sd)}, 95% interval {shown.interval(gain.ci95)})"
    )
    if over := seeds.delta_continued_fft:
        text += f" and over continued FFT {shown.delta(over.mean)} ({shown.interval(over.ci95)})"
    return f"{text}: {'within seed noise' if seeds.within_noise else 'more than seed noise'}."


def _warning(made: str, row: MetricComparison) -> str:
    shown = unit(row.metric)
    assert row.p_holm is not None
    return (
        f"Warning: the {made} makes {row.metric} worse, {shown.number(row.mft)} after {shown.number(row.fft)} "
        f"({shown.delta(row.delta)}, p {_equals(row.p_holm)})."
    )


def _against(whom: str, shown: Unit, against: Paired) -> str:
    end = "no difference"
    if against.better:
        end = "better"
    elif against.worse:
        end = "worse"
    score = shown.score(against.baseline)
    return f"Against {whom} ({score}) it is {_difference(shown, against)}, {end} beyond chance."


def _power(shown: Unit, fft: Paired) -> str:
    """What so many examples could have shown, and how many it would take."""
    if fft.delta == 0 and fft.ci95 == (0, 0):
        return "The two answer every example alike."
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
