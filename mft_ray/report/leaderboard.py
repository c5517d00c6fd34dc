"""The leaderboard: trials best first, with the FFT baseline standing where it ranks."""

from __future__ import annotations

import io
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from mft_ray.runs.reading import Run, read
from mft_ray.runs.records import Trial
from mft_ray.utils import formatting as units

_WIDE = Console(file=io.StringIO(), width=10_000)
_SPEAKING = ("target",)
PARAMETERS = ("ratio", "layers", "target", "init", "schedule", "lr")
REASONS = {
    "completed": "completed",
    "below_fft": "below FFT",
    "plateau": "plateau",
    "target": "ahead of FFT",
    "pruned": "pruned",
    "failed": "failed",
    "cancelled": "cancelled",
    "running": "running",
    "interrupted": "interrupted",
}


@dataclass(frozen=True)
class Line:
    """One line of the leaderboard, as text.

    Attributes:
        kind: ``trial``, ``fft`` or ``continued``.
        place: place among the trials, empty where there is none.
        name: the trial's id, or what the line is.
        winner: whether this trial is the one that was, or would be, judged.
        settings: the trial's configuration, in the order of `parameters`; empty for a baseline.
        step: optimizer step of the score.
        score: on validation, in the metric's unit.
        delta: against FFT, signed; empty for FFT itself.
        ahead: +1, 0 or -1: above, level with or below FFT, None when unknown.
        reason: why the trial stopped.
        time: how long it took.
        front: whether it is on the Pareto front of a search that looked for one.
    """

    kind: str
    place: str
    name: str
    winner: bool
    settings: tuple[str, ...]
    step: str
    score: str
    delta: str
    ahead: int | None
    reason: str
    time: str
    front: bool = False


def parameters(run: Run) -> tuple[str, ...]:
    """Names of the settings that the trials differ by: the usual ones, then any other."""
    used = {key for trial in run.trials for key in trial.config}
    return tuple(k for k in PARAMETERS if k in used) + tuple(sorted(used.difference(PARAMETERS)))


def lines(run: Run) -> list[Line]:
    """Every line, best first; a trial level with a baseline stands below it, for it gained nothing."""
    unit = units.unit(run.baseline.metric)
    names = parameters(run)
    board = [(trial.score, _trial(trial, place, run, names, unit)) for place, trial in enumerate(run.trials, 1)]
    fft = run.baseline.validation.score
    for kind, name, score in (
        ("fft", "FFT baseline", fft),
        ("continued", "FFT continued", _continued_score(run)),
    ):
        if score is not None:
            delta = None if kind == "fft" or fft is None else score - fft
            above = sum(1 for value, _ in board if value is not None and value > score)
            board.insert(above, (score, _baseline(kind, name, score, delta, unit)))
    return [line for _, line in board]


def reason(trial: Trial) -> str:
    """Why a trial stopped, in words."""
    given = trial.stopped_reason or trial.status
    return REASONS.get(given, given) or units.NONE


def table(
    run: Run, limit: int | None = None, also: Collection[str] = (), width: int | None = None, whole: bool = True
) -> Table:
    """The leaderboard for a terminal.

    Args:
        run: what the run folder says.
        limit: show this many trials at most, the best; the baselines are always shown.
        also: identifiers of trials that are shown wherever they stand.
        width: number of columns of the terminal; where a column for each setting is too much for it, all settings
            share one. None has room for any.
        whole: whether settings that share a column may take several lines, and are not cut off.
    """
    full = _table(run, limit, also)
    if width is None or Measurement.get(_WIDE, _WIDE.options, full).maximum <= width:
        return full
    return _table(run, limit, also, shared=True, whole=whole)


def _table(run: Run, limit: int | None, also: Collection[str], shared: bool = False, whole: bool = True) -> Table:
    unit = units.unit(run.baseline.metric)
    names = parameters(run)
    shown = Table(
        title=f"Leaderboard: {unit.axis.lower()} on {run.baseline.validation.n:,} validation examples",
        title_justify="left",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    shown.add_column("#", justify="right")
    shown.add_column("trial", no_wrap=True)
    if shared:
        shown.add_column("settings")
    for name in () if shared else names:
        shown.add_column(name, justify="right" if name in ("ratio", "lr") else "left", no_wrap=True)
    for name in ("step", "score", "Δ FFT"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("stopped", no_wrap=True)
    shown.add_column("time", justify="right", no_wrap=True)
    trials = 0
    hidden = 0
    for line in lines(run):
        trials += line.kind == "trial"
        if line.kind == "trial" and limit is not None and trials > limit and line.name not in also:
            hidden += 1
            continue
        _add(shown, line, _settings(line, names, shared, whole))
    more = f"; {hidden} more in leaderboard.json" if hidden else ""
    front = "; ◇ on the Pareto front of score and ratio" if run.seeks_front else ""
    shown.caption = f"* {'judged on test' if run.verdict else 'best so far'}{front}{more}"
    shown.caption_justify = "left"
    return shown


def text(run: Run, limit: int | None = None, width: int = 160) -> str:
    """The leaderboard as plain text, for a log or a file."""
    out = io.StringIO()
    Console(file=out, width=width, color_system=None, legacy_windows=False).print(table(run, limit))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _trial(trial: Trial, place: int, run: Run, names: tuple[str, ...], unit: units.Unit) -> Line:
    return Line(
        kind="trial",
        place=str(place) if trial.score is not None else "",
        name=trial.trial_id,
        winner=trial == run.winner,
        settings=tuple(_setting(name, trial.config.get(name)) for name in names),
        step=units.count(trial.step),
        score=unit.number(trial.score),
        delta=unit.signed(trial.delta_fft),
        ahead=_sign(trial.delta_fft),
        reason=reason(trial),
        time=units.duration(trial.seconds),
        front=run.seeks_front and trial.pareto,
    )


def _baseline(kind: str, name: str, score: float, delta: float | None, unit: units.Unit) -> Line:
    return Line(
        kind=kind,
        place="",
        name=name,
        winner=False,
        settings=(),
        step="",
        score=unit.number(score),
        delta="" if kind == "fft" else unit.signed(delta),
        ahead=_sign(delta),
        reason="",
        time="",
    )


def _setting(name: str, value: object) -> str:
    # As many decimals in every line, so that a column of ratios lines up.
    return f"{value:.3f}" if name == "ratio" and isinstance(value, float) else units.setting(value)


def _sign(delta: float | None) -> int | None:
    return None if delta is None else (delta > 0) - (delta < 0)


def show(folder: Path, limit: int | None = None) -> None:
    """Print a run folder's leaderboard.

    Raises:
        UserError: the folder is not a run folder, or a file in it is broken.
    """
    run = read(folder)
    console = Console()
    if console.is_terminal:
        console.print(table(run, limit, width=console.width))
    else:
        # A log has no width of its own; rich would squeeze the table into 80 columns.
        print(text(run, limit), end="", flush=True)


def _settings(line: Line, names: tuple[str, ...], shared: bool, whole: bool) -> list[Text]:
    values = line.settings or ("",) * len(names)
    if not shared:
        return [Text(value) for value in values]
    # Words say what they are; a number does not.
    said = [value if name in _SPEAKING else f"{name} {value}" for name, value in zip(names, values, strict=True)]
    text = ", ".join(said) if line.settings else ""
    return [Text(text) if whole else Text(text, no_wrap=True, overflow="ellipsis")]


def _add(shown: Table, line: Line, settings: list[Text]) -> None:
    """Cells are `Text`, so that a name with square brackets is not taken for markup."""
    colour = {1: "green", -1: "red"}.get(line.ahead or 0, "")
    cells = [
        Text(line.place),
        Text(line.name + (" *" if line.winner else "") + (" ◇" if line.front else "")),
        *settings,
        Text(line.step),
        Text(line.score),
        Text(line.delta, style=colour),
        Text(line.reason),
        Text(line.time),
    ]
    shown.add_row(*cells, style="bold" if line.winner else "" if line.kind == "trial" else "cyan")


def _continued_score(run: Run) -> float | None:
    continued = run.baseline.continued
    return continued.validation.score if continued and continued.validation else None
