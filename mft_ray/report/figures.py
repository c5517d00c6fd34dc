"""The report's figures; every one carries the FFT line, its axes and its units."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import plotly.graph_objects as go

from mft_ray.report import plotting
from mft_ray.report.leaderboard import reason
from mft_ray.report.plotting import CONTINUED, GAIN, INK, LOSS, UNSURE, WINNER, plain
from mft_ray.runs.reading import Run
from mft_ray.runs.records import Interval, Trial
from mft_ray.utils import formatting as units

REASON_COLOURS = {
    "completed": "#3b82c4",
    "plateau": "#8fb8de",
    "below FFT": "#b0b8c1",
    "ahead of FFT": "#2e9e6b",
    "pruned": "#b79fd1",
    "failed": "#c0392b",
    "cancelled": "#d9b36c",
    "running": "#e69f00",
    "interrupted": "#d9b36c",
}
# Colours that stay apart for readers who confuse red and green (Okabe and Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star")


def trial_curves(run: Run) -> go.Figure:
    """Validation score against optimizer step: every trial, the FFT line, and continued FFT."""
    run = run.while_training
    unit = units.unit(run.baseline.metric)
    figure = go.Figure()
    winner = run.winner
    trials = {trial.trial_id: trial for trial in run.trials}
    named: set[str] = set()
    for trial_id, points in run.curves.trials.items():
        if winner is not None and trial_id == winner.trial_id:
            continue
        trial = trials.get(trial_id)
        outcome = reason(trial) if trial is not None else "still training"
        colour = REASON_COLOURS.get(outcome, REASON_COLOURS["completed"])
        trace = plotting.curve(points, unit, plain(outcome), colour, plotting.describe(trial_id, trial), 1.4)
        # One legend entry per outcome; a click on it hides or shows all of its trials.
        figure.add_trace(trace.update(legendgroup=plain(outcome), showlegend=outcome not in named))
        named.add(outcome)
    if run.curves.continued:
        trace = plotting.curve(run.curves.continued, unit, "FFT continued", CONTINUED, "FFT continued", 2.4)
        figure.add_trace(trace.update(line_dash="dot"))
    if winner is not None and winner.trial_id in run.curves.trials:
        points = run.curves.trials[winner.trial_id]
        about = plotting.describe(winner.trial_id, winner)
        figure.add_trace(plotting.curve(points, unit, plotting.winner_name(run), WINNER, about, 3.2))
    everything = [point for points in run.curves.trials.values() for point in points] + run.curves.continued
    plotting.fft_line(figure, run)
    plotting.zoom(figure, run, [point.score for point in everything])
    plotting.style(figure, "Optimizer step of the mask (or of continued FFT)", unit.axis)
    return figure


def fft_curve(run: Run) -> go.Figure:
    """Validation score against optimizer step of the FFT training itself."""
    run = run.while_training
    unit = units.unit(run.baseline.metric)
    figure = go.Figure(plotting.curve(run.curves.fft, unit, "FFT while it trained", COLOURS[0], "FFT training", 2.6))
    scores = [(point.score, point.step) for point in run.curves.fft if point.score is not None]
    if scores:
        best, step = max(scores, key=lambda pair: pair[0])
        figure.add_annotation(
            x=step,
            y=best * unit.scale,
            text=f"best, step {step:,}",
            ax=0,
            ay=32,
            arrowcolor=UNSURE,
            font={"color": INK, "size": 12},
        )
    plotting.fft_line(figure, run)
    plotting.style(figure, "Optimizer step of FFT", unit.axis, height=340)
    return figure


def score_by_ratio(run: Run) -> go.Figure:
    """Each trial's best validation score against its masking ratio, by score init and schedule."""
    figure = _scatter(run, _percent_masked, _start, ", ".join)
    front = run.pareto_front if run.seeks_front else []
    if len(front) > 1:
        scale = units.unit(run.baseline.metric).scale
        figure.add_trace(
            go.Scatter(
                x=[_percent_masked(trial) for trial in front],
                y=[trial.score * scale for trial in front if trial.score is not None],
                mode="lines",
                name="Pareto front",
                line={"color": UNSURE, "width": 1.4, "shape": "vh"},
                hoverinfo="skip",
            )
        )
    plotting.style(figure, "Masking ratio (% of weights removed)", _axis(run))
    return figure


def score_by_layers(run: Run) -> go.Figure:
    """Each trial's best validation score by layer group, shallow to deep, by target."""
    figure = _scatter(run, _layers, _target, lambda pair: f"target {pair[0]}")
    plotting.style(figure, "Layer group", _axis(run))
    groups = {str(trial.config["layers"]) for trial in plotting.scored(run) if "layers" in trial.config}
    # A bare "4" or "4-7" must not be read as a number or a date.
    order = [plain(group) for group in sorted(groups, key=plotting.depth)]
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=order)
    return figure


def forest(comparisons: Sequence[tuple[str, float, Interval]], unit: units.Unit, confidence: float) -> go.Figure:
    """Differences on test with their intervals, beside the line of no difference.

    Args:
        comparisons: what is compared, the difference and its interval, top first.
        unit: the metric's.
        confidence: confidence of the intervals.
    """
    figure = go.Figure()
    for label, delta, (low, high) in reversed(comparisons):
        colour = GAIN if low > 0 else LOSS if high < 0 else UNSURE
        error = {"array": [(high - delta) * unit.scale], "arrayminus": [(delta - low) * unit.scale]}
        about = f"{unit.delta(delta)}<br>{confidence:.0%} interval {unit.interval((low, high))}"
        figure.add_trace(
            go.Scatter(
                x=[delta * unit.scale],
                y=[label],
                mode="markers",
                marker={"color": colour, "size": 13, "symbol": "square"},
                error_x={"type": "data", "color": colour, "thickness": 2.5, "width": 8, **error},
                hovertemplate=f"<b>{label}</b><br>{about}<extra></extra>",
            )
        )
    figure.add_vline(x=0, line={"color": INK, "width": 1.2, "dash": "dash"})
    bounds = [bound * unit.scale for _, _, interval in comparisons for bound in interval] + [0.0]
    margin = 0.12 * (max(bounds) - min(bounds)) or 1.0
    plotting.style(figure, unit.delta_axis, "", height=80 + 52 * len(comparisons))
    figure.update_layout(showlegend=False, margin={"l": 10, "r": 16, "t": 6, "b": 46})
    figure.update_xaxes(range=[min(bounds) - margin, max(bounds) + margin])
    return figure.update_yaxes(showgrid=False, range=[-0.6, len(comparisons) - 0.4])


def _scatter(
    run: Run,
    x: Callable[[Trial], float | str | None],
    group: Callable[[Trial], tuple[str, str]],
    name: Callable[[tuple[str, str]], str],
) -> go.Figure:
    """Trials by their best validation score; a group's parts choose colour and symbol."""
    unit = units.unit(run.baseline.metric)
    groups: dict[tuple[str, str], list[Trial]] = defaultdict(list)
    for trial in plotting.scored(run):
        if x(trial) is not None:
            groups[group(trial)].append(trial)
    colours = sorted({first for first, _ in groups})
    symbols = sorted({second for _, second in groups})
    figure = go.Figure()
    for pair, trials in sorted(groups.items()):
        colour = COLOURS[colours.index(pair[0]) % len(COLOURS)]
        symbol = SYMBOLS[symbols.index(pair[1]) % len(SYMBOLS)]
        marks = plotting.marks([x(trial) for trial in trials], trials, unit, plain(name(pair)), colour, symbol)
        figure.add_trace(marks)
    plotting.ring_winner(figure, run, unit, x)
    plotting.fft_line(figure, run)
    plotting.zoom(figure, run, [trial.score for trials in groups.values() for trial in trials])
    return figure


def _axis(run: Run) -> str:
    return units.unit(run.baseline.metric).axis


def _percent_masked(trial: Trial) -> float | None:
    ratio = trial.config.get("ratio")
    return 100 * ratio if isinstance(ratio, int | float) else None


def _layers(trial: Trial) -> str | None:
    return plain(str(trial.config["layers"])) if "layers" in trial.config else None


def _start(trial: Trial) -> tuple[str, str]:
    return str(trial.config.get("init", units.NONE)), str(trial.config.get("schedule", units.NONE))


def _target(trial: Trial) -> tuple[str, str]:
    target = str(trial.config.get("target", units.NONE))
    return target, target
