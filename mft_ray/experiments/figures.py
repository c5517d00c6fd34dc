"""An experiment's figure, as PNG and SVG, readable on its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no screen

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, ScalarFormatter

from mft_ray.experiments.catalogue import CONTINUED, EXPERIMENTS, FFT
from mft_ray.experiments.results import Curve, Results, Summary
from mft_ray.experiments.tables import unit_of
from mft_ray.utils.files import replacing
from mft_ray.utils.formatting import Unit

# Okabe and Ito's colours, which those who see fewer can tell apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999", "#f0e442")
INK = "#1f2933"


def draw(results: Results, path: Path) -> Path:
    """Draw an experiment and return where the PNG is; the SVG is beside it.

    Args:
        results: what was found.
        path: path of the files, without their endings.
    """
    figure = {"curves": _curves, "transfer": _transfer, "cost": _cost, "flatness": _flatness}.get(
        results.name, _differences
    )(results)
    for ending in ("png", "svg"):
        with replacing(path.with_name(f"{path.name}.{ending}")) as partial:
            figure.savefig(partial, format=ending, dpi=150, metadata={"Date": None} if ending == "svg" else None)
    return path.with_name(f"{path.name}.png")


def _figure(results: Results, columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(7.2 * columns if columns == 1 else 4.8 * columns, 4.6), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    figure.suptitle(EXPERIMENTS[results.name].question, fontsize=12)
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(axis="y", color="#e4e7eb", linewidth=0.8)
        each.set_axisbelow(True)
    return figure, list(axes)


def _test(results: Results) -> list[Summary]:
    """The rows on the test examples, by the metric that decides."""
    rows = [each for each in results.summary() if each.on == "test"]
    return [each for each in rows if each.metric == rows[0].metric]


def _differences(results: Results) -> Figure:
    """The difference to FFT against what was varied, with Student's interval and every seed."""
    rows = [each for each in _test(results) if each.row != FFT]
    numbers = all(each.x is not None for each in rows)
    # By name one plot for each comparison; by number all in one, a line for each row.
    panels = [None] if numbers else list(dict.fromkeys(each.panel for each in rows))
    figure, axes = _figure(results, len(panels))
    for panel, axis in zip(panels, axes, strict=True):
        mine = [each for each in rows if panel in (None, each.panel)]
        if numbers:
            lines: dict[str, list[Summary]] = {}
            several = len({each.panel for each in mine}) > 1
            for each in mine:
                lines.setdefault(each.row if several else "mask", []).append(each)
            for colour, (name, line) in zip(COLOURS, lines.items(), strict=False):
                line.sort(key=lambda each: each.x or 0.0)
                _errorbars(axis, [each.x or 0.0 for each in line], line, colour, name, joined=True)
        else:
            _errorbars(axis, list(range(len(mine))), mine, COLOURS[0], "mean over seeds, 95% interval")
            labels = [each.row.removeprefix(f"{results.name} ") for each in mine]
            axis.set_xticks(
                range(len(mine)), labels, rotation=30 if len(mine) > 5 else 0, ha="right" if len(mine) > 5 else "center"
            )
            axis.set_title((len(panels) > 1 and panel) or "", fontsize=10)
            _make_room(axis, mine)
        _fft_line(axis, 0.0, "FFT")
        axis.set_xlabel(EXPERIMENTS[results.name].axis)
    unit = unit_of(rows[0])
    axes[0].set_ylabel(f"{unit.label} on test: difference to FFT\n({_unit_name(unit)})")
    axes[-1].legend(frameon=False, fontsize=9)
    return figure


def _errorbars(
    axis: Axes, xs: Sequence[float], rows: Sequence[Summary], colour: str, label: str, joined: bool = False
) -> None:
    scale = unit_of(rows[0]).scale
    means = [each.delta * scale for each in rows]
    reach = [[abs((each.ci95 or (each.delta,) * 2)[side] - each.delta) * scale for each in rows] for side in (0, 1)]
    style = "o-" if joined else "o"
    axis.errorbar(xs, means, yerr=reach, fmt=style, color=colour, capsize=4, linewidth=1.4, label=label)
    for x, each in zip(xs, rows, strict=True):
        axis.plot([x] * len(each.deltas), [delta * scale for delta in each.deltas], "_", color=colour, alpha=0.6)


def _make_room(axis: Axes, rows: Sequence[Summary]) -> None:
    """Where one row is far from all others, scale logarithmically beyond them, so that they can be told apart."""
    sizes = [abs(each.delta) * unit_of(each).scale for each in rows]
    typical = float(np.median(sizes))
    if max(sizes) > 10 * typical > 0:
        linear = float(f"{4 * typical:.0g}")
        axis.set_yscale("symlog", linthresh=linear)
        ticks = [*(sign * linear * step for sign in (-1, 1) for step in (0.5, 1, 4, 16, 64)), 0.0]
        low, high = axis.get_ylim()
        axis.set_yticks([tick for tick in ticks if low <= tick <= high])
        axis.yaxis.set_major_formatter(ScalarFormatter())
        axis.minorticks_off()
        axis.annotate(
            f"logarithmic beyond ±{linear:g}", (1, 1), xycoords="axes fraction", ha="right", va="top", fontsize=8
        )


def _curves(results: Results) -> Figure:
    """Validation against tokens, FFT first, then every method from where it ended: means over seeds, and each seed."""
    figure, (axis,) = _figure(results)
    unit = unit_of(_test(results)[0])
    names = list(dict.fromkeys(curve.row for curve in results.curves))
    for colour, name in zip((INK, *COLOURS), names, strict=False):
        curves = [curve for curve in results.curves if curve.row == name]
        start = 0.0 if name == FFT else 1.0
        for curve in curves:
            tokens, scores = _points(curve, unit)
            axis.plot(tokens - tokens[-1] * (1 - start), scores, color=colour, alpha=0.25, linewidth=0.8)
        tokens, scores = _mean(curves, unit)
        label = "FFT" if name == FFT else name
        marker = "o" if len(tokens) == 1 else None  # a mask that was cut once
        axis.plot(tokens - tokens[-1] * (1 - start), scores, color=colour, linewidth=2, marker=marker, label=label)
    best = [max(point["score"] for point in curve.points) for curve in results.curves if curve.row == FFT]
    if best:
        _fft_line(axis, unit.scale * sum(best) / len(best), "FFT, best checkpoint")
    axis.axvline(0, color="#9aa5b1", linewidth=0.8)
    axis.xaxis.set_major_formatter(EngFormatter())
    axis.set_xlabel("tokens trained on, from the end of FFT (left of 0: FFT itself)")
    axis.set_ylabel(f"{unit.axis} on validation")
    axis.legend(frameon=False, fontsize=9, ncols=2)
    return figure


def _points(curve: Curve, unit: Unit) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.array([point["tokens"] for point in curve.points], dtype=float)
    return tokens, np.array([point["score"] * unit.scale for point in curve.points])


def _mean(curves: Sequence[Curve], unit: Unit) -> tuple[np.ndarray, np.ndarray]:
    """Mean over seeds of the evaluations that all of them reached."""
    length = min(len(curve.points) for curve in curves)
    pairs = [_points(curve, unit) for curve in curves]
    tokens, scores = (np.mean([pair[index][:length] for pair in pairs], axis=0) for index in (0, 1))
    return tokens, scores


def _transfer(results: Results) -> Figure:
    """A matrix, masked for one domain and judged on each: differences to FFT, those beyond noise in bold."""
    rows = [*_test(results), *(each for each in results.summary() if each.on != "test")]
    rows = [each for each in rows if each.row == "mft"]
    panels = list(dict.fromkeys(each.panel for each in rows))
    tasks = list(dict.fromkeys(each.on for each in rows if each.on != "test"))
    tasks.sort(key=lambda task: panels.index(task) if task in panels else len(panels))  # own domains on the diagonal
    # A domain without a task is judged on its own test examples, which the others are judged on by its name.
    by_place = {(each.panel, each.panel if each.on == "test" else each.on): each for each in rows}
    figure, (axis,) = _figure(results)
    axis.grid(visible=False)
    values = np.full((len(panels), len(tasks)), np.nan)
    for (panel, task), each in by_place.items():
        if task in tasks:
            values[panels.index(panel), tasks.index(task)] = each.delta * unit_of(each).scale
    reach = max(float(np.nanmax(np.abs(values))), 1e-9)
    axis.imshow(values, cmap="RdBu", vmin=-reach, vmax=reach, aspect="auto")
    for (panel, task), each in by_place.items():
        if task in tasks:
            y, x = panels.index(panel), tasks.index(task)
            unit = unit_of(each)
            interval = f"\n[{unit.signed(each.ci95[0])}, {unit.signed(each.ci95[1])}]" if each.ci95 else ""
            style: dict[str, Any] = {
                "weight": "bold" if each.sure else "normal",
                "fontsize": 9,
                "ha": "center",
                "va": "center",
            }
            colour = INK if abs(values[y, x]) < 0.6 * reach else "white"
            axis.text(x, y, unit.signed(each.delta) + interval, color=colour, **style)
    axis.set_xticks(range(len(tasks)), tasks)
    axis.set_yticks(range(len(panels)), panels)
    axis.set_xlabel(EXPERIMENTS[results.name].axis)
    axis.set_ylabel("mask trained for")
    units = ", ".join(dict.fromkeys(_unit_name(unit_of(each)) for each in by_place.values()))
    axis.set_title(f"difference to FFT in {units} [95% over seeds], bold where beyond noise", fontsize=10)
    return figure


def _cost(results: Results) -> Figure:
    """Each cost by method, relative to continued FFT."""
    costs = (("flops", "FLOPs"), ("seconds", "time"), ("memory", "peak memory"), ("artifact_bytes", "size on disk"))
    figure, axes = _figure(results, len(costs))
    rows = [row for row in results.rows if row.on == "test" and row.cost and row.row != FFT]
    names = list(dict.fromkeys(row.row for row in rows))
    for (key, label), axis in zip(costs, axes, strict=True):
        for place, name in enumerate(names):
            ratios = [
                row.cost[key] / rival.cost[key]
                for row in rows
                for rival in rows
                if row.row == name and rival.row == CONTINUED and rival.seed == row.seed and row.cost and rival.cost
            ]
            axis.bar(place, sum(ratios) / len(ratios), color=COLOURS[place % len(COLOURS)], width=0.7)
            axis.plot([place] * len(ratios), ratios, "_", color=INK)
        axis.axhline(1, color=INK, linestyle="--", linewidth=1.2)
        axis.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
        axis.set_title(label, fontsize=10)
    axes[0].set_ylabel("as a multiple of continued FFT (bars: mean over seeds)")
    return figure


def _flatness(results: Results) -> Figure:
    """The loss along random directions: means over seeds and directions, and each seed's."""
    figure, (axis,) = _figure(results)
    for colour, name in zip((INK, *COLOURS), dict.fromkeys(each["row"] for each in results.more), strict=False):
        mine = [each for each in results.more if each["row"] == name]
        lines = [np.mean(each["losses"], axis=0) for each in mine]
        for line in lines:
            axis.plot(mine[0]["distances"], line, color=colour, alpha=0.3, linewidth=0.8)
        tops = [each["top_eigenvalue"] for each in mine]
        label = f"{'FFT' if name == FFT else name}, top eigenvalue {sum(tops) / len(tops):.3g}"
        axis.plot(mine[0]["distances"], np.mean(lines, axis=0), "o-", color=colour, linewidth=2, label=label)
    axis.set_yscale("log")
    axis.set_xlabel(EXPERIMENTS[results.name].axis + ", as a multiple of the weights' norm")
    axis.set_ylabel("loss on validation (nats per answer token)")
    axis.legend(frameon=False, fontsize=9)
    return figure


def _fft_line(axis: Axes, score: float, label: str) -> None:
    axis.axhline(score, color=INK, linestyle="--", linewidth=1.2, label=label)


def _unit_name(unit: Unit) -> str:
    return (unit.delta_suffix or unit.label).strip()
