"""The table of a comparison: on the terminal, and as Markdown to paste somewhere."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mft_ray.runs.records import Comparison, ScoreTable
from mft_ray.training.job import Cost
from mft_ray.utils import formatting as units
from mft_ray.utils.files import write_text

_COST = ("tokens", "FLOPs", "time", "peak memory", "trained", "size")


def show(path: Path, console: Console | None = None) -> None:
    """Print a ``comparison.json``: the scores, then the costs."""
    content = Comparison.load(path)
    console = console or Console()
    blocks = [(_label(table), ("method", "score (95%)", "− FFT (95%)", "p (Holm)")) for table in content.scores]
    for number, (title, header) in enumerate(blocks):
        rows = [[row.name, *_scores(row.name, content.scores[number])] for row in content.rows]
        console.print(_table(title, header, rows))
    rows = [[row.name, *_cost(row.cost)] for row in content.rows]
    console.print(_table("what each cost", ("method", *_COST), rows))
    for row in content.rows:
        if row.error is not None:
            console.print(Text(f"{row.name} has failed: {row.error}"))  # no markup, whatever is in brackets


def _table(title: str, header: tuple[str, ...], rows: list[list[str]]) -> Table:
    table = Table(box=box.SIMPLE, title=Text(title), title_justify="left")
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def write_table(path: Path) -> Path:
    """Write a ``comparison.json`` as one table in Markdown beside it, and return where."""
    content = Comparison.load(path)
    header = ["method"]
    for table in content.scores:
        header += [f"{_label(table)} (95%)", "− FFT (95%)", "p (Holm)"]
    rows = []
    for row in content.rows:
        scores = [cell for table in content.scores for cell in _scores(row.name, table)]
        rows.append([row.name, *scores, *_cost(row.cost)])
    lines = [[*header, *_COST], ["---"] * (len(header) + len(_COST)), *rows]
    out = path.with_suffix(".md")
    write_text(out, "".join(f"| {' | '.join(cells)} |\n" for cells in lines))
    return out


def _label(table: ScoreTable) -> str:
    """Name what was scored, and on how many examples."""
    name = _unit(table).axis if table.on == "test" else f"{table.on}, {_unit(table).axis}"
    return f"{name}, n = {table.n:,}"


def _scores(name: str, table: ScoreTable) -> list[str]:
    unit, found = _unit(table), table.rows.get(name)
    if found is None:  # it failed
        return [units.NONE] * 3
    low, high = found.ci95
    score = f"{unit.number(found.score)} [{unit.number(low)}, {unit.number(high)}]"
    if found.p_value is None:
        return [score, units.NONE, units.NONE]
    low, high = found.delta_ci95
    delta = f"{unit.signed(found.delta_fft)} [{unit.signed(low)}, {unit.signed(high)}]"
    return [score, delta, units.p_value(found.p_holm)]


def _cost(cost: Cost | None) -> list[str]:
    if cost is None:
        return [units.NONE] * len(_COST)
    return [
        units.count(cost.tokens),
        units.operations(cost.flops),
        units.duration(cost.seconds),
        units.size(cost.memory),
        units.count(cost.trainable),
        units.size(cost.artifact_bytes),
    ]


def _unit(table: ScoreTable) -> units.Unit:
    """Scores of a task that are shares are shown in percent, as the field does."""
    scores = [bound for row in table.rows.values() for bound in (row.score, *row.ci95)]
    known = units.unit(table.metric)
    if table.on != "test" and all(0 <= score <= 1 for score in scores):
        return units.percent(table.metric)
    return known
