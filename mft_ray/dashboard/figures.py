"""Figures that a person chooses by while a search goes on, beside those of the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import plotly.graph_objects as go

from mft_ray.report import plotting
from mft_ray.report.leaderboard import parameters, reason
from mft_ray.report.plotting import GAIN, GRID, INK, plain
from mft_ray.runs.reading import Run
from mft_ray.runs.records import Trial
from mft_ray.utils import formatting as units

# Below FFT, level with it, above it: apart for readers who confuse red and green.
_SCALE = [[0.0, "#d55e00"], [0.5, "#e8e8e8"], [1.0, "#0072b2"]]
_MOST_PARAMETERS = 8
_GAINED = "Δ FFT"


def heat_map(run: Run) -> go.Figure | None:
    """Difference from FFT by layer group and masking ratio; None where nothing has both and a score."""
    unit = units.unit(run.baseline.metric)
    shown = [trial for trial in _compared(run) if "layers" in trial.config and _is_number(trial.config.get("ratio"))]
    if not shown:
        return None
    groups = sorted({str(trial.config["layers"]) for trial in shown}, key=plotting.depth)
    deltas = [(trial.delta_fft or 0.0) * unit.scale for trial in shown]
    most = max(abs(delta) for delta in deltas) or 1.0
    figure = go.Figure(
        go.Scatter(
            x=[plain(str(trial.config["layers"])) for trial in shown],
            y=[100 * trial.config["ratio"] for trial in shown],
            mode="markers",
            marker={
                "symbol": "square",
                "size": 22,
                "color": deltas,
                "colorscale": _SCALE,
                "cmin": -most,
                "cmax": most,
                "line": {"color": INK, "width": 0.6},
                "colorbar": {"title": {"text": "Δ FFT"}, "thickness": 12},
            },
            text=[_about(trial, unit) for trial in shown],
            customdata=[trial.trial_id for trial in shown],
            hovertemplate="%{text}<extra></extra>",
        )
    )
    plotting.style(figure, "Layer group", "Masking ratio (%)", height=380)
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=[plain(group) for group in groups])
    return figure.update_layout(showlegend=False)


def parallel(run: Run) -> go.Figure | None:
    """One line for each trial through its settings to its difference from FFT; None with fewer than two trials."""
    unit, shown = units.unit(run.baseline.metric), _compared(run)
    differ = [name for name in parameters(run) if len({str(trial.config.get(name)) for trial in shown}) > 1]
    names = differ[:_MOST_PARAMETERS]
    if len(shown) < 2 or not names:
        return None
    places = {name: _places([trial.config.get(name) for trial in shown]) for name in names}
    deltas = [(trial.delta_fft or 0.0) * unit.scale for trial in shown]
    ends = _places(deltas)
    figure = go.Figure()
    for number, trial in enumerate(shown):
        gained = deltas[number] > 0
        figure.add_trace(
            go.Scatter(
                x=[*names, _GAINED],
                y=[*(places[name][number] for name in names), ends[number]],
                mode="lines+markers",
                line={"color": GAIN if gained else "#8fb8de", "width": 2.2 if gained else 1.2},
                marker={"size": 6},
                text=[_about(trial, unit)] * (len(names) + 1),
                hovertemplate="%{text}<extra></extra>",
            )
        )
    for name in names:
        _label_ends(figure, name, [trial.config.get(name) for trial in shown])
    _label_ends(figure, _GAINED, [round(delta, unit.digits) for delta in deltas])
    plotting.style(figure, "", "", height=360)
    figure.update_layout(showlegend=False, margin={"l": 24, "r": 40, "t": 14, "b": 44})
    figure.update_xaxes(type="category", gridcolor=GRID)
    return figure.update_yaxes(visible=False, range=[-0.16, 1.12])


def history(run: Run, numbers: Mapping[str, int]) -> go.Figure | None:
    """Best score of each trial in the order in which they were asked for, beside FFT's line; None without a score.

    Args:
        run: the run.
        numbers: number of each trial in its study, by its identifier.
    """
    unit = units.unit(run.baseline.metric)
    shown = [trial for trial in plotting.scored(run) if trial.trial_id in numbers]
    if not shown:
        return None
    marks = plotting.marks([numbers[each.trial_id] for each in shown], shown, unit, "trials", "#0072b2", "circle")
    figure = go.Figure(marks)
    plotting.fft_line(figure, run)
    plotting.style(figure, "Number of the trial in the study", unit.axis)
    return figure


def importance(study: Path) -> go.Figure | None:
    """How much of the difference between scores each setting explains (fANOVA); None where trials are too few.

    Args:
        study: path of the study's database.
    """
    import optuna

    from mft_ray.runs.study.file import open_copy

    if not study.exists():
        return None
    storage = open_copy(study)
    summaries = optuna.get_all_study_summaries(storage)
    if len(summaries) != 1:
        return None
    known = optuna.load_study(study_name=summaries[0].study_name, storage=storage)
    target = (lambda trial: trial.values[0]) if len(known.directions) > 1 else None
    if len({tuple(trial.values) for trial in known.get_trials(False, (optuna.trial.TrialState.COMPLETE,))}) < 2:
        return None
    try:
        found = optuna.importance.get_param_importances(known, target=target)
    except (ValueError, RuntimeError):  # too few trials
        return None
    shares = [(name, share) for name, share in found.items() if math.isfinite(share)][::-1]
    if not shares:
        return None
    figure = go.Figure(
        go.Bar(
            x=[100 * share for _, share in shares],
            y=[plain(name) for name, _ in shares],
            orientation="h",
            marker={"color": "#0072b2"},
            hovertemplate="%{y}: %{x:.0f} %<extra></extra>",
        )
    )
    plotting.style(figure, "Part of the variance of scores (%)", "", height=110 + 30 * len(shares))
    return figure.update_layout(showlegend=False)


def densities(layers: dict[str, float], modules: dict[str, float]) -> go.Figure:
    """Part of the weights that a mask removes, by layer and by kind of module.

    Args:
        layers: ratio by layer.
        modules: ratio by kind of module.
    """
    figure = go.Figure()
    for name, ratios, colour in (("layer", layers, "#0072b2"), ("module", modules, "#009e73")):
        figure.add_trace(
            go.Bar(
                x=[f"{name} {plain(key)}" if name == "layer" else plain(key) for key in ratios],
                y=[100 * ratio for ratio in ratios.values()],
                name=f"by {name}",
                marker={"color": colour},
                hovertemplate="%{x}: %{y:.2f} %<extra></extra>",
            )
        )
    plotting.style(figure, "", "Weights removed (%)", height=360)
    return figure.update_xaxes(type="category")


def _compared(run: Run) -> list[Trial]:
    return [trial for trial in plotting.scored(run) if trial.delta_fft is not None]


def _about(trial: Trial, unit: units.Unit) -> str:
    score = f"{unit.score(trial.score)}, {unit.delta(trial.delta_fft)} against FFT"
    return f"<b>{plotting.describe(trial.trial_id, trial)}</b><br>{score}<br>{plain(reason(trial))}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _places(values: Sequence[object]) -> list[float]:
    """Return where on an axis from 0 to 1 each value stands: numbers by size (by magnitude where they span decades)."""
    numbers = [float(value) for value in values if _is_number(value)]  # type: ignore[arg-type]
    if len(numbers) == len(values) and numbers:
        low, high = min(numbers), max(numbers)
        if low > 0 and high / low > 30:
            numbers = [math.log(number) for number in numbers]
            low, high = min(numbers), max(numbers)
        return [0.5 if high == low else (number - low) / (high - low) for number in numbers]
    order = sorted({str(value) for value in values}, key=plotting.depth)
    return [order.index(str(value)) / max(1, len(order) - 1) for value in values]


def _label_ends(figure: go.Figure, axis: str, values: Sequence[object]) -> None:
    """Write the lowest and the highest value at the ends of an axis."""
    by_place = dict(zip(_places(values), values, strict=True))
    for place in {min(by_place), max(by_place)}:
        above = place == max(by_place)
        figure.add_annotation(
            x=axis,
            y=place,
            text=plain(units.setting(by_place[place])),
            showarrow=False,
            yshift=13 if above else -13,
            font={"size": 11, "color": INK},
            bgcolor="rgba(255,255,255,0.7)",
        )
