"""The report: one HTML file that can be read without a network, or anything else beside it."""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from mft_ray.report import figures, leaderboard, verdict
from mft_ray.report.endings import ended_early
from mft_ray.report.next_steps import next_steps
from mft_ray.runs.reading import Run, read
from mft_ray.runs.records import Baseline, Measured, Trial
from mft_ray.utils import formatting as units
from mft_ray.utils.files import write_text
from mft_ray.utils.json_types import JsonObject

HERE = Path(__file__).parent
_POLICY = "POLICY-OF-THIS-PAGE"
FFT_STOPPED = {
    "plateau": "This FFT stopped because it no longer improved.",
    "completed": "This FFT used up all its steps and might have improved further.",
    "given": "This FFT model was given: whether it had stopped improving is not known here.",
}


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
    write_text(path, page.replace(_POLICY, _policy(page), 1))
    return path


def _content(run: Run) -> JsonObject:
    unit = units.unit(run.baseline.metric)
    return {
        "name": run.name,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "metric": unit.axis,
        "product": run.product,
        "held": run.unselected_dtype,
        **verdict.content(run),
        "parameters": leaderboard.parameters(run),
        "board": leaderboard.lines(run),
        "n_validation": run.baseline.validation.n,
        "standard_error": unit.number(run.baseline.error),
        "errors": [(trial.trial_id, trial.error) for trial in run.trials if trial.error],
        "ended_early": ended_early(run),
        "costs": _costs(run),
        "fft_stopped": _fft_stopped(run.baseline),
        "facts": _facts(run),
        "config": run.config_text,
        "changed": run.changed,
        "next_steps": next_steps(run),
        "figures": _figures(run),
        "plotly": Markup(get_plotlyjs()),
        "policy": _POLICY,
    }


def _policy(page: str) -> str:
    """Return a Content-Security-Policy: a page runs the scripts that are in it, and gets nothing from anywhere."""
    scripts = dict.fromkeys(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL)
    )
    # plotly styles what it draws.
    return f"default-src 'none'; script-src {' '.join(scripts)}; style-src 'unsafe-inline'; img-src data: blob:"


def _fft_stopped(baseline: Baseline) -> str:
    said = FFT_STOPPED.get(baseline.stopped or "", "")
    # The best of the continued run is its start: a new warm-up and as many tokens as a mask has led nowhere.
    if baseline.continued and baseline.continued.best_step == 0:
        return f"{said} Trained on for the winner's token budget, it got no better."
    return said


def _figures(run: Run) -> dict[str, Markup]:
    """Each figure as markup; only those that have something to show."""
    made: dict[str, go.Figure] = {}
    if run.verdict is not None:
        compared = [(row.label, row.delta, row.ci95) for row in verdict.comparisons(run) if row.ci95 is not None]
        made["forest"] = figures.forest(compared, units.unit(run.verdict.metric), run.verdict.confidence)
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


def _costs(run: Run) -> list[tuple[str, str, str, str]]:
    """What was spent: name, steps, tokens and time of each training."""
    rows: list[tuple[str, Measured | Trial | None]] = [("FFT baseline", run.baseline)]
    rows.append(("FFT continued", run.baseline.continued))
    if run.winner is not None:
        rows.append((f"{run.product.capitalize()}, trial {run.winner.trial_id}", run.winner))
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
        ("Weights outside the selection, on the way", run.unselected_dtype),
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
