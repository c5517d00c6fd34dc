"""What the comparisons of an experiment found, seed by seed and over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mft_ray.evaluation.statistics import interval
from mft_ray.experiments.catalogue import FFT, Cell
from mft_ray.runs import records
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.records import Comparison, ScoreTable
from mft_ray.training.job import Outcome
from mft_ray.utils.json_types import JsonObject


@dataclass(frozen=True)
class Row:
    """One row of one comparison on one set of examples.

    Attributes:
        seed: seed of the comparison.
        panel: the comparison.
        row: its name there.
        method: one of `mft_ray.config.METHODS`.
        x: its place on the figure's axis, where that is a number.
        on: ``test``, a benchmark task, or another panel on whose test examples it was judged.
        metric: metric of the scores.
        n: examples.
        score: mean over the examples.
        delta_fft: score less FFT's on the same examples.
        delta_ci95: paired bootstrap interval of that.
        p_value: p value of the paired test; None for FFT itself.
        best_step: optimizer steps of the kept state.
        cost: same as in `mft_ray.training.job.Cost`; None where FFT was given.
    """

    seed: int
    panel: str
    row: str
    method: str
    x: float | None
    on: str
    metric: str
    n: int
    score: float
    delta_fft: float
    delta_ci95: tuple[float, float]
    p_value: float | None
    best_step: int | None
    cost: dict[str, float] | None


@dataclass(frozen=True)
class Summary:
    """A row over seeds.

    Attributes:
        panel: the comparison.
        row: its name there.
        x: its place on the figure's axis, where that is a number.
        on: ``test`` or a benchmark task.
        metric: metric of the scores.
        score: mean over seeds.
        deltas: differences to FFT, one per seed.
        delta: their mean.
        ci95: Student's 95% interval of that mean, over seeds; None with one seed.
    """

    panel: str
    row: str
    x: float | None
    on: str
    metric: str
    score: float
    deltas: tuple[float, ...]
    delta: float
    ci95: tuple[float, float] | None

    @property
    def sure(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.ci95 is not None and (self.ci95[0] > 0 or self.ci95[1] < 0)


@dataclass(frozen=True)
class Curve:
    """Validation while one row trained.

    Attributes:
        seed: seed of the comparison.
        panel: the comparison.
        row: its name there.
        points: step, tokens, score and masking ratio of each evaluation.
    """

    seed: int
    panel: str
    row: str
    points: tuple[dict[str, float], ...]


@dataclass(frozen=True)
class Results:
    """All that an experiment found.

    Attributes:
        name: name of the experiment.
        rows: raw.
        curves: raw.
        failed: what could not be trained, and why.
        more: what an experiment measures beside.
    """

    name: str
    rows: list[Row]
    curves: list[Curve]
    failed: list[str] = field(default_factory=list)
    more: list[JsonObject] = field(default_factory=list)

    def raw(self) -> JsonObject:
        """Return everything as JSON has it."""
        return {"schema": 1, **asdict(self), "summary": [asdict(each) for each in self.summary()]}

    def summary(self) -> list[Summary]:
        """Return each row over seeds, in the order in which the first seed has them."""
        found: dict[tuple[str, str, str, str], list[Row]] = {}
        for row in self.rows:
            found.setdefault((row.panel, row.row, row.on, row.metric), []).append(row)
        return [_summary(rows) for rows in found.values()]


def collect(name: str, cells: Sequence[Cell], more: list[JsonObject]) -> Results:
    """Read what every comparison of an experiment has left; ``more`` is what was measured beside."""
    rows: list[Row] = []
    curves: list[Curve] = []
    failed: list[str] = []
    for cell in cells:
        folder = RunFolder(cell.folder)
        content = Comparison.load(folder.comparison)
        for each in content.rows:
            if each.error is not None:
                failed.append(f"{each.name} of {cell.config.run.name}: {each.error}")
                continue
            rows += [_row(cell, each, table) for table in content.scores]
            at = folder.fft if each.name == FFT else folder.methods / each.name
            if (at / "outcome.json").exists():
                curves.append(Curve(cell.seed, cell.panel.name, each.name, _points(at / "outcome.json")))
    return Results(name, rows, curves, failed, more)


def _row(cell: Cell, each: records.Row, table: ScoreTable) -> Row:
    name = each.name
    found = table.rows[name]
    # The test examples of another panel are a file of this seed's own; over seeds they go by the panel's name.
    other = Path(table.on).stem
    return Row(
        seed=cell.seed,
        panel=cell.panel.name,
        row=name,
        method=each.method,
        x=cell.panel.x.get(name),
        on=other if other in cell.panel.judged_on else table.on,
        metric=table.metric,
        n=table.n,
        score=found.score,
        delta_fft=found.delta_fft,
        delta_ci95=found.delta_ci95,
        p_value=found.p_value,
        best_step=each.best_step,
        cost=None if each.cost is None else asdict(each.cost),
    )


def _points(path: Path) -> tuple[dict[str, float], ...]:
    history = Outcome.load(path).history
    return tuple({"step": e.step, "tokens": e.tokens, "score": e.score, "ratio": e.ratio} for e in history)


def _summary(rows: Sequence[Row]) -> Summary:
    first, deltas = rows[0], tuple(row.delta_fft for row in rows)
    return Summary(
        panel=first.panel,
        row=first.row,
        x=first.x,
        on=first.on,
        metric=first.metric,
        score=math.fsum(row.score for row in rows) / len(rows),
        deltas=deltas,
        delta=math.fsum(deltas) / len(deltas),
        ci95=interval(deltas, binary=False) if len(deltas) > 1 else None,
    )
