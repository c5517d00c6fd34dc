"""The report: one HTML file that can be read without a network, or anything else beside it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from mft_ray.report import figures, leaderboard, units
from mft_ray.report.records import Baseline, Interval, Measured, Run, Trial, Verdict, read

HERE = Path(__file__).parent
TESTS = {"mcnemar": "an exact McNemar test", "paired_t": "a paired t-test"}
FFT_STOPPED = {
    "plateau": "This FFT stopped because it no longer improved.",
    "completed": "This FFT used up all its steps and might have improved further.",
    "given": "This FFT model was given: whether it had stopped improving is not known here.",
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


def render(run: Path) -> Path:
    """Write ``report.html`` into a run folder, whole or not at all.

    Args:
        run: the folder; its search may have no verdict yet, which the report then says.

    Returns:
        Where the report is.

    Raises:
        UserError: the folder is not a run folder, or a file in it is broken.
    """
    page = _environment().get_template("template.html").render(**_content(read(run)))
    path = run / "report.html"
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)
    return path


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
        what = "than seed noise" if _beats_continued(verdict) else "than FFT continued"
        return Banner("partly", f"Better than FFT, not {what}", sentence)
    if verdict.ci95[1] < 0:
        return Banner("worse", "Worse than FFT", sentence)
    return Banner("no", "No gain shown", sentence)


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


def _content(run: Run) -> dict[str, Any]:
    unit = units.unit(run.baseline.metric)
    return {
        "name": run.name,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "metric": unit.axis,
        "banner": banner(run),
        "product": run.product,
        "judged": _judged(run),
        "comparisons": _comparisons(run),
        "extra": _extra(run),
        "verdict_test": TESTS.get(run.verdict.test or "", "a paired test") if run.verdict else "",
        "confidence": f"{run.verdict.confidence:.0%}" if run.verdict else "",
        "knobs": leaderboard.knobs(run),
        "board": leaderboard.lines(run),
        "n_validation": run.baseline.validation.n,
        "standard_error": unit.number(run.baseline.error),
        "errors": [(trial.trial_id, trial.error) for trial in run.trials if trial.error],
        "costs": _costs(run),
        "fft_stopped": _fft_stopped(run.baseline),
        "facts": _facts(run),
        "config": run.config_text,
        "figures": _figures(run),
        "plotly": Markup(get_plotlyjs()),
    }


def _fft_stopped(baseline: Baseline) -> str:
    said = FFT_STOPPED.get(baseline.stopped or "", "")
    # The best of the continued run is its start: a new warm-up and as many tokens as a mask has led nowhere.
    if baseline.continued and baseline.continued.best_step == 0:
        return f"{said} Trained on for the winner's token budget, it got no better."
    return said


def _figures(run: Run) -> dict[str, Markup]:
    """Each figure as markup; only those that have something to show."""
    made: dict[str, go.Figure] = {}
    verdict = run.verdict
    if verdict is not None:
        compared = [("Mask − FFT", verdict.delta, verdict.ci95)]
        if verdict.delta_continued_fft is not None and verdict.ci95_continued_fft is not None:
            compared.append(("Mask − FFT continued", verdict.delta_continued_fft, verdict.ci95_continued_fft))
        made["forest"] = figures.forest(compared, units.unit(verdict.metric), verdict.confidence)
    if run.curves.trials or run.curves.continued:
        made["trials"] = figures.trial_curves(run)
    if any(trial.score is not None for trial in run.trials):
        made["ratio"] = figures.score_by_ratio(run)
        made["layers"] = figures.score_by_layers(run)
    if run.curves.fft:
        made["fft"] = figures.fft_curve(run)
    return {name: _markup(figure, f"figure-{name}") for name, figure in made.items()}


def _markup(figure: go.Figure, name: str) -> Markup:
    # plotly escapes < and > in the JSON it writes, so that no text in it can end the script.
    return Markup(
        figure.to_html(
            full_html=False,
            include_plotlyjs=False,
            div_id=name,
            config={"responsive": True, "displayModeBar": False},
        )
    )


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
    winner = (run.product.capitalize(), unit.score(verdict.mft), f"the {run.product} of trial {verdict.trial_id}")
    return [*rows, winner]


def _comparisons(run: Run) -> list[tuple[str, str, str, str]]:
    """What is compared on test, the difference, its interval and p-value."""
    verdict = run.verdict
    if verdict is None:
        return []
    rows: list[tuple[str, float | None, Interval | None, float | None]] = [
        ("Mask − FFT", verdict.delta, verdict.ci95, verdict.p_value),
        (
            "Mask − FFT continued",
            verdict.delta_continued_fft,
            verdict.ci95_continued_fft,
            verdict.p_value_continued_fft,
        ),
    ]
    unit = units.unit(verdict.metric)
    return [
        (label, unit.delta(delta), unit.interval(interval), units.p_value(p))
        for label, delta, interval, p in rows
        if delta is not None
    ]


def _extra(run: Run) -> list[tuple[str, ...]]:
    rows = []
    for other in run.verdict.extra if run.verdict else []:
        unit = units.unit(other.metric)
        scores = [unit.number(score) for score in (other.fft, other.continued, other.mft)]
        difference = [unit.signed(other.delta), unit.interval(other.ci95), units.p_value(other.p_value)]
        rows.append((unit.axis, units.count(other.n), *scores, *difference))
    return rows


def _costs(run: Run) -> list[tuple[str, str, str, str]]:
    """What was spent: name, steps, tokens and time of each training."""
    rows: list[tuple[str, Measured | Trial | None]] = [("FFT baseline", run.baseline)]
    rows.append(("FFT continued", run.baseline.continued))
    if run.winner is not None:
        rows.append((f"Mask, trial {run.winner.trial_id}", run.winner))
    shown = [
        (name, units.count(spent.steps), units.count(spent.tokens), units.duration(spent.seconds))
        for name, spent in rows
        if spent is not None
    ]
    timed = [trial.seconds for trial in run.trials if trial.seconds is not None]
    if timed:
        tokens = [trial.tokens for trial in run.trials if trial.tokens is not None]
        total = units.count(sum(tokens)) if tokens else units.NONE
        label = f"All {len(timed)} {run.product}s, times added up"
        shown.append((label, units.NONE, total, units.duration(sum(timed))))
    return shown


def _facts(run: Run) -> list[tuple[str, str]]:
    """The few settings a reader asks for first; the whole configuration is on the page too."""

    def setting(*path: str) -> Any:
        value: Any = run.config
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    backbone = setting("model", "path")
    kind = setting("model", "architecture", "model_type")
    if backbone is None and kind is not None:
        backbone = f"{kind}, trained from scratch"
    facts = [
        ("Model", backbone),
        ("Task", setting("data", "task")),
        ("Metric", units.unit(run.baseline.metric).label),
        ("Validation examples", units.count(run.baseline.validation.n)),
        ("Test examples", units.count(run.verdict.n) if run.verdict else None),
        ("Trials", str(len(run.trials))),
        ("Seed", setting("run", "seed")),
    ]
    return [(name, str(value)) for name, value in facts if value is not None]


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
