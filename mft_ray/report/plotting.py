"""What every figure of the report shares: style, the FFT line, marks and hover texts."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence

import plotly.graph_objects as go

from mft_ray.report.leaderboard import PARAMETERS, reason
from mft_ray.runs.reading import Run
from mft_ray.runs.records import Point, Trial
from mft_ray.utils import formatting as units

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif"
INK, GRID = "#1f2933", "#e4e7eb"
CONTINUED, WINNER = "#d55e00", "#00795c"
GAIN, LOSS, UNSURE = "#00795c", "#c0392b", "#7b8794"


def plain(text: str) -> str:
    """Text for a figure, in which plotly would otherwise take tags for formatting."""
    return html.escape(text)


def describe(trial_id: str, trial: Trial | None) -> str:
    """A trial's name and settings, for hovering."""
    known = {} if trial is None else trial.config
    lines = [f"trial {trial_id}"] + [f"{k} {units.setting(known[k])}" for k in PARAMETERS if k in known]
    return "<br>".join(plain(line) for line in lines)


def winner_name(run: Run) -> str:
    """What the best trial is called: without a verdict nothing has been won."""
    return "winner" if run.verdict is not None else "best so far"


def scored(run: Run) -> list[Trial]:
    """Trials that have a score."""
    return [trial for trial in run.trials if trial.score is not None]


def depth(layers: str) -> tuple[float, float, str]:
    """Sort key of a layer group: shallow before deep, ``all`` and the like last."""
    numbers = [float(n) for n in re.findall(r"\d+", layers)] or [float("inf")]
    return numbers[0], numbers[-1], layers


def curve(points: Sequence[Point], unit: units.Unit, name: str, colour: str, about: str, width: float) -> go.Scatter:
    """A line of score against optimizer step; ``about`` heads its hover texts."""
    details = [
        f"{unit.score(p.score)} at step {p.step:,}"
        + (f"<br>{100 * p.ratio:.3g} % masked" if p.ratio is not None else "")
        + (f"<br>{units.count(p.tokens)} tokens" if p.tokens is not None else "")
        + (f"<br>{units.duration(p.seconds)}" if p.seconds is not None else "")
        for p in points
    ]
    return go.Scatter(
        x=[p.step for p in points],
        y=[None if p.score is None else p.score * unit.scale for p in points],
        mode="lines+markers",
        name=name,
        text=details,
        line={"color": colour, "width": width},
        marker={"size": width + 3},
        hovertemplate=f"<b>{about}</b><br>%{{text}}<extra></extra>",
    )


def marks(
    x: Sequence[object], trials: Sequence[Trial], unit: units.Unit, name: str, colour: str, symbol: str
) -> go.Scatter:
    """One mark per trial at its best validation score; every trial given has one."""
    return go.Scatter(
        x=x,
        y=[None if t.score is None else t.score * unit.scale for t in trials],
        mode="markers",
        name=name,
        text=[f"<b>{describe(t.trial_id, t)}</b><br>{unit.score(t.score)}, {plain(reason(t))}" for t in trials],
        marker={
            "color": colour,
            "symbol": symbol,
            "size": 11,
            "opacity": 0.85,
            "line": {"color": "white", "width": 1},
        },
        hovertemplate="%{text}<extra></extra>",
    )


def ring_winner(figure: go.Figure, run: Run, unit: units.Unit, x: Callable[[Trial], object]) -> None:
    """Ring the winner's mark."""
    winner = run.winner
    if winner is None or winner.score is None or (at := x(winner)) is None:
        return
    figure.add_trace(
        go.Scatter(
            x=[at],
            y=[winner.score * unit.scale],
            mode="markers",
            name=winner_name(run),
            marker={"symbol": "circle-open", "size": 20, "color": WINNER, "line": {"width": 2.5}},
            hoverinfo="skip",
        )
    )


def fft_line(figure: go.Figure, run: Run) -> None:
    """The FFT baseline's validation score, with a band of one standard error where that is known."""
    score = run.baseline.validation.score
    if score is None:
        return
    unit = units.unit(run.baseline.metric)
    error = run.baseline.error
    if error:
        figure.add_hrect(
            y0=(score - error) * unit.scale,
            y1=(score + error) * unit.scale,
            fillcolor=INK,
            opacity=0.07,
            line_width=0,
            layer="below",
        )
    figure.add_hline(y=score * unit.scale, line={"color": INK, "width": 1.6, "dash": "dash"})
    # A line across the whole plot is no trace: an empty one puts it into the legend, clear of the curves.
    figure.add_trace(
        go.Scatter(
            x=[None],
            y=[None],
            mode="lines",
            name=f"FFT {unit.score(score)}",
            line={"color": INK, "width": 1.6, "dash": "dash"},
        )
    )


def zoom(figure: go.Figure, run: Run, scores: Sequence[float | None]) -> None:
    """Offer a button that looks closely at the scores around FFT, where collapsed trials flatten them."""
    fft = run.baseline.validation.score
    values = [score for score in scores if score is not None]
    if fft is None or not values:
        return
    span = max(max(values) - fft, 2 * (run.baseline.error or 0.0), 0.01 * abs(fft))
    low, high = fft - 2 * span, max(*values, fft) + 0.5 * span
    if span == 0 or min(values) >= low - span:
        return
    scale = units.unit(run.baseline.metric).scale
    figure.update_layout(
        updatemenus=[
            {
                "type": "buttons",
                "direction": "right",
                "x": 1,
                "xanchor": "right",
                "y": 1.02,
                "yanchor": "bottom",
                "pad": {"t": 0, "b": 4, "r": 0, "l": 0},
                "bgcolor": "white",
                "bordercolor": GRID,
                "font": {"size": 12, "color": INK},
                "buttons": [
                    {"label": "All", "method": "relayout", "args": [{"yaxis.autorange": True}]},
                    {
                        "label": "Near FFT",
                        "method": "relayout",
                        "args": [{"yaxis.autorange": False, "yaxis.range": [low * scale, high * scale]}],
                    },
                ],
            }
        ],
    )


def style(figure: go.Figure, x: str, y: str, height: int = 430) -> None:
    """The report's look: light, room for the labels, legend below."""
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 62, "r": 14, "t": 46 if figure.layout.updatemenus else 14, "b": 50},
        font={"family": FONT, "size": 13, "color": INK},
        paper_bgcolor="white",
        plot_bgcolor="white",
        hovermode="closest",
        hoverlabel={"bgcolor": "white", "align": "left", "font": {"color": INK, "family": FONT}},
        showlegend=True,
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": -0.17, "yanchor": "top"},
    )
    axis = {"gridcolor": GRID, "linecolor": GRID, "zeroline": False, "automargin": True, "ticks": ""}
    figure.update_xaxes(title={"text": x, "standoff": 8, "font": {"size": 13}}, **axis)
    figure.update_yaxes(title={"text": y, "standoff": 10, "font": {"size": 13}}, **axis)
