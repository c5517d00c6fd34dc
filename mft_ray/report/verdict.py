"""The verdict as the report shows it: the answer, what was compared, and what else is known."""

from __future__ import annotations

from dataclasses import dataclass

from mft_ray.runs.reading import Run
from mft_ray.runs.records import Example, Interval, MetricComparison, Verdict
from mft_ray.utils import formatting as units
from mft_ray.utils.json_types import JsonObject

TESTS = {
    "mcnemar": "an exact McNemar test",
    "paired_t": "a paired t-test",
    "wilcoxon": "Wilcoxon's signed-rank test",
    "cluster_t": "a t-test that is robust to examples that share a source",
}


@dataclass(frozen=True)
class Banner:
    """The answer at the top of the page.

    Attributes:
        mood: ``yes``, ``partly``, ``no``, ``worse`` or ``open``; chooses the colour.
        label: the answer in a word or two.
        sentence: the verdict.
    """

    mood: str
    label: str
    sentence: str


def content(run: Run) -> JsonObject:
    """What the template's verdict section is filled with."""
    verdict = run.verdict
    return {
        "banner": banner(run),
        "judged": _judged(run),
        "comparisons": [_shown(row, run) for row in comparisons(run)],
        "extra": _rows(verdict.extra if verdict else []),
        "other_tasks": _rows(verdict.other_tasks if verdict else []),
        "worse": [units.unit(row.metric).axis for row in verdict.other_tasks if row.worse] if verdict else [],
        "seeds": _seeds(verdict),
        "discordant": _discordant(run),
        "looks": len(verdict.looks) if verdict else 0,
        "selected_from": verdict.selection if verdict else None,
        "verdict_test": TESTS.get(verdict.test or "", "a paired test") if verdict else "",
        "confidence": f"{verdict.confidence:.0%}" if verdict else "",
    }


def banner(run: Run) -> Banner:
    """What the search found; an unfinished one has found nothing yet, and the banner says so."""
    unit = units.unit(run.baseline.metric)
    verdict = run.verdict
    if verdict is None:
        best = run.winner
        standing = (
            "No trial has a score yet."
            if best is None
            else f"The best of {len(run.trials)} trials scores {unit.score(best.score)} on validation, FFT "
            f"{unit.score(run.baseline.validation.score)}. That is selection, not proof: the best of many "
            "trials looks better than it is."
        )
        return Banner("open", "No verdict yet", f"The search has not been judged on test data. {standing}")
    sentence = verdict.sentence or _sentence(verdict, run.product)
    if verdict.beats_fft:
        return Banner("yes", "Better than FFT", sentence)
    if verdict.better_than_fft:
        return Banner("partly", f"Better than FFT{_but(verdict)}", sentence)
    if verdict.worse:
        return Banner("worse", "Worse than FFT", sentence)
    return Banner("no", "No gain shown", sentence)


def _but(verdict: Verdict) -> str:
    """What keeps a gain over FFT from being called one that beats FFT."""
    if "continued_fft" in verdict.not_run:
        return "; FFT continued could not be run"
    if not _beats_continued(verdict):
        return ", not than FFT continued"
    return ", not than seed noise" if verdict.seeds else "; other seeds could not be run"


def _beats_continued(verdict: Verdict) -> bool:
    """Without a continued FFT there is nothing that the winner failed to beat."""
    if verdict.beats_continued_fft is not None:
        return verdict.beats_continued_fft
    return verdict.ci95_continued_fft is None or verdict.ci95_continued_fft[0] > 0


def _sentence(verdict: Verdict, product: str) -> str:
    unit = units.unit(verdict.metric)
    answer = "beats FFT" if verdict.beats_fft else "does not beat FFT beyond chance"
    return (
        f"On {verdict.n:,} test examples the {product} {answer}: {unit.score(verdict.mft)} against "
        f"{unit.score(verdict.fft)}, {unit.delta(verdict.delta)} "
        f"({verdict.confidence:.0%} interval {unit.interval(verdict.ci95)})."
    )


@dataclass(frozen=True)
class Comparison:
    """The winner against another model on the test examples."""

    label: str
    delta: float
    ci95: Interval | None
    p_value: float | None


def comparisons(run: Run) -> list[Comparison]:
    """What is compared on test."""
    verdict = run.verdict
    if verdict is None:
        return []
    mine = run.product.capitalize()
    rows = [Comparison(f"{mine} − FFT", verdict.delta, verdict.ci95, verdict.p_value)]
    if verdict.delta_continued_fft is not None:
        ci95, p_value = verdict.ci95_continued_fft, verdict.p_value_continued_fft
        rows.append(Comparison(f"{mine} − FFT continued", verdict.delta_continued_fft, ci95, p_value))
    if (rival := verdict.rival) is not None:
        rows.append(Comparison(f"{mine} − {rival.method}", rival.delta, rival.ci95, rival.p_value))
    return rows


def _shown(row: Comparison, run: Run) -> tuple[str, str, str, str]:
    unit = units.unit(run.baseline.metric)
    return (row.label, unit.delta(row.delta), unit.interval(row.ci95), units.p_value(row.p_value))


def _judged(run: Run) -> list[tuple[str, str, str]]:
    """Name, test score and a remark of each judged model."""
    verdict = run.verdict
    if verdict is None:
        return []
    unit = units.unit(verdict.metric)
    rows = [("FFT", unit.score(verdict.fft), "the fully fine-tuned model")]
    continued = verdict.continued_fft
    if continued is None and verdict.delta_continued_fft is not None:
        continued = verdict.mft - verdict.delta_continued_fft
    if continued is not None:
        rows.append(("FFT continued", unit.score(continued), "trained on for the winner's token budget"))
    if verdict.rival is not None:
        remark = "the best of the other methods on validation"
        rows.append((verdict.rival.method, unit.score(verdict.rival.score), remark))
    winner = (run.product.capitalize(), unit.score(verdict.mft), f"the {run.product} of trial {verdict.trial_id}")
    return [*rows, winner]


def _rows(others: list[MetricComparison]) -> list[tuple[str, ...]]:
    rows = []
    for other in others:
        unit = units.unit(other.metric)
        scores = [unit.number(score) for score in (other.fft, other.continued, other.mft)]
        difference = [unit.signed(other.delta), unit.interval(other.ci95), units.p_value(other.p_value)]
        rows.append((unit.axis, units.count(other.n), *scores, *difference))
    return rows


def _seeds(verdict: Verdict | None) -> list[tuple[str, ...]]:
    """A row for each seed, then their mean."""
    if verdict is None or verdict.seeds is None:
        return []
    unit, seeds = units.unit(verdict.metric), verdict.seeds
    rows = [
        (
            f"seed {number}",
            *(unit.number(scores.get(name)) for name in ("fft", "continued", "mft")),
            *(unit.signed(_less(scores["mft"], scores.get(name))) for name in ("fft", "continued")),
        )
        for number, scores in enumerate(seeds.runs, start=1)
    ]
    over = (seeds.delta, seeds.delta_continued_fft)
    means = (f"{unit.signed(each.mean)} ({unit.interval(each.ci95)})" if each else units.NONE for each in over)
    return [*rows, ("mean and its interval", "", "", "", *means)]


def _less(one: float, other: float | None) -> float | None:
    return None if other is None else one - other


def _discordant(run: Run) -> list[tuple[str, str, list[tuple[Example, str, str]]]]:
    """For each set of examples its name, then what FFT got right and the winner wrong, and the reverse."""
    found = []
    for each in run.differences.sets if run.verdict else []:
        unit = units.unit(each.metric)
        name = unit.label if each.on == "test" else f"{each.on}: {each.metric}"
        for title, sign in (("FFT is better", 1), (f"the {run.product} is better", -1)):
            examples = [
                (example, unit.number(example.scores["fft"]), unit.number(example.scores["mft"]))
                for example in each.examples
                if sign * (example.scores["fft"] - example.scores["mft"]) > 0
            ]
            if examples:
                found.append((name, title, examples))
    return found
