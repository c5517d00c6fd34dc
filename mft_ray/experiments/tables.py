"""An experiment's table, in Markdown."""

from __future__ import annotations

from pathlib import Path

from mft_ray.experiments.catalogue import CONTINUED, EXPERIMENTS, FFT
from mft_ray.experiments.results import Results, Summary
from mft_ray.utils import formatting as units
from mft_ray.utils.files import write_text
from mft_ray.utils.formatting import Unit

COSTS = ("tokens", "FLOPs", "time", "peak memory", "trained", "size")


def write_tables(results: Results, path: Path) -> Path:
    """Write the scores of all rows over seeds, then what each cost, and return where."""
    experiment = EXPERIMENTS[results.name]
    seeds = len({row.seed for row in results.rows})
    lines = [f"# {results.name}: {experiment.question}", ""]
    lines += [
        f"Means over {seeds} seeds; intervals are Student's 95% over seeds, of the difference to the FFT model of the",
        "same seed on the same examples. An interval that holds zero shows no difference.",
        "",
        *_scores(results),
        "",
        *(_wins(results) if results.name == "recipes" else []),
        *_costs(results),
    ]
    if results.more:
        lines += ["", *_flatness(results)]
    if results.failed:
        lines += ["", "Not trained:", "", *(f"- {each}" for each in results.failed)]
    write_text(path, "\n".join(lines) + "\n")
    return path


def unit_of(summary: Summary) -> Unit:
    """How a row's scores are shown: those of a task that are shares in percent, as the field does."""
    if summary.on != "test" and 0 <= summary.score <= 1:
        return units.percent(summary.metric)
    return units.unit(summary.metric)


def _scores(results: Results) -> list[str]:
    lines = ["| comparison | row | on | score | − FFT (95%) | each seed |", "| --- | --- | --- | --: | --: | --- |"]
    for each in results.summary():
        unit = unit_of(each)
        cells = [each.panel, each.row, f"{each.on}, {unit.axis}", unit.number(each.score)]
        if each.row == FFT:
            cells += [units.NONE, units.NONE]
        else:
            interval = f" [{units_interval(unit, each)}]" if each.ci95 else ""
            cells += [unit.signed(each.delta) + interval, ", ".join(unit.signed(delta) for delta in each.deltas)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _wins(results: Results) -> list[str]:
    """On how many seeds of each comparison a row scores more on test than FFT, and than FFT that went on."""
    by_cell: dict[tuple[str, int], dict[str, float]] = {}
    for each in results.rows:
        if each.on == "test":
            by_cell.setdefault((each.panel, each.seed), {}).setdefault(each.row, each.score)
    panels = list(dict.fromkeys(panel for panel, _ in by_cell))
    names = [name for name in dict.fromkeys(each.row for each in results.rows) if name not in (FFT, CONTINUED)]
    rivals = [rival for rival in (FFT, CONTINUED) if any(rival in scores for scores in by_cell.values())]
    heads = [f"{panel}, > {rival}" for panel in panels for rival in rivals]
    lines = [f"| seeds won | {' | '.join(heads)} |", "| --- |" + " --: |" * len(heads)]
    for name in names:
        cells = []
        for panel in panels:
            scores = [found for (where, _), found in by_cell.items() if where == panel and name in found]
            cells += [f"{sum(found[name] > found[rival] for found in scores)} of {len(scores)}" for rival in rivals]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def units_interval(unit: Unit, summary: Summary) -> str:
    """An interval as tables have it."""
    assert summary.ci95
    return ", ".join(unit.signed(bound) for bound in summary.ci95)


def _costs(results: Results) -> list[str]:
    lines = [f"| comparison | row | {' | '.join(COSTS)} |", "| --- | --- |" + " --: |" * len(COSTS)]
    spent: dict[tuple[str, str], list[dict[str, float]]] = {}
    for row in results.rows:
        if row.cost is not None and row.on == "test":
            spent.setdefault((row.panel, row.row), []).append(row.cost)
    for (panel, name), costs in spent.items():
        mean = {key: sum(cost[key] for cost in costs) / len(costs) for key in costs[0]}
        cells = [
            units.count(round(mean["tokens"])),
            units.operations(mean["flops"]),
            units.duration(mean["seconds"]),
            units.size(mean["memory"]),
            units.count(round(mean["trainable"])),
            units.size(mean["artifact_bytes"]),
        ]
        lines.append(f"| {panel} | {name} | {' | '.join(cells)} |")
    return lines


def _flatness(results: Results) -> list[str]:
    lines = [
        "Loss on validation, nats per answer token, and the largest eigenvalue of its Hessian:",
        "",
        "| row | loss | rise at the largest distance | top eigenvalue | of each seed |",
        "| --- | --: | --: | --: | --- |",
    ]
    for name in dict.fromkeys(each["row"] for each in results.more):
        mine = [each for each in results.more if each["row"] == name]
        middle, ends = mine[0]["distances"].index(0.0), (0, -1)
        loss = [_mean([losses[middle] for losses in each["losses"]]) for each in mine]
        far = [_mean([losses[end] for losses in each["losses"] for end in ends]) for each in mine]
        tops = [each["top_eigenvalue"] for each in mine]
        rise = _mean(far) - _mean(loss)
        every = ", ".join(f"{top:.3g}" for top in tops)
        lines.append(f"| {name} | {_mean(loss):.4f} | {rise:+.3f} | {_mean(tops):.3g} | {every} |")
    return lines


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
