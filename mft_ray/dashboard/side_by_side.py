"""What the page of several trials shows: what tells them from each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mft_ray.dashboard.pages import named
from mft_ray.errors import UserError
from mft_ray.models.names import MASK
from mft_ray.report import leaderboard
from mft_ray.report.disagreements import Disagreement, disagreement
from mft_ray.report.leaderboard import reason
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.live.snapshot import Live
from mft_ray.runs.records import Trial
from mft_ray.utils import formatting as units
from mft_ray.utils.json_types import JsonObject


def compared(live: Live, trial_ids: list[str]) -> JsonObject:
    """Return what tells some trials from each other: settings, results, and how alike their masks are.

    Raises:
        UserError: there is no such trial, or fewer than two are given.
    """
    trials = _several(live, trial_ids)
    unit = units.unit(live.run.baseline.metric)
    names = leaderboard.parameters(live.run)
    rows: list[tuple[str, list[str], bool]] = [
        (name, *_row([units.setting(each.config.get(name)) for each in trials])) for name in names
    ]
    shown: list[tuple[str, Callable[[Trial], str]]] = [
        ("score", lambda each: unit.score(each.score)),
        ("against FFT", lambda each: unit.delta(each.delta_fft)),
        ("stopped", reason),
        ("tokens", lambda each: units.count(each.tokens)),
        ("time", lambda each: units.duration(each.seconds)),
    ]
    rows += [(name, *_row([show(each) for each in trials])) for name, show in shown]
    folder = RunFolder(live.run.folder)
    masks = {each.trial_id: folder.trial(each.trial_id) / MASK for each in trials}
    there = {name: str(path) for name, path in masks.items() if path.exists()}
    overlaps: list[Any] = []
    if len(there) > 1:
        from mft_ray.models.inspection import inspect

        by_path = {path: name for name, path in there.items()}
        overlaps = [
            (by_path[each.first], by_path[each.second], each.jaccard, each.chance, each.layers)
            for each in inspect(list(there.values())).overlaps
        ]
    return {"trials": trials, "rows": rows, "overlaps": overlaps, "without": sorted(masks.keys() - there.keys())}


def compared_examples(live: Live, trial_ids: list[str]) -> JsonObject:
    """Return the validation examples on which some trials disagree.

    Raises:
        UserError: there is no such trial, or fewer than two are given.
    """
    found = disagreement(live.run.folder, [each.trial_id for each in _several(live, trial_ids)])
    unit = units.unit(found.metric)

    def cell(score: float) -> str:
        return ("right" if score else "wrong") if found.right_or_wrong else unit.score(score)

    shown = [
        (example, [cell(score) for score in example.scores], "" if example.fft is None else cell(example.fft))
        for example in found.examples
    ]
    return {"found": found, "shown": shown, "counted": _counted(found)}


def _counted(found: Disagreement) -> str:
    if not found.right_or_wrong:
        said = f"By {units.unit(found.metric).label.lower()} their scores differ on {found.differing:,} of {found.n:,}"
        return f"{said} validation examples."
    said = f"One is right and another wrong on {found.differing:,} of {found.n:,} validation examples"
    alone = [f"{name} alone is right on {count:,}" for name, count in zip(found.trials, found.alone, strict=True)]
    return f"{said}: {'; '.join(alone)}." if found.differing else f"{said}."


def _several(live: Live, trial_ids: list[str]) -> list[Trial]:
    trials = [named(live, each) for each in dict.fromkeys(trial_ids)]
    if len(trials) < 2:
        raise UserError("Mark two or more trials on the leaderboard to see them side by side.")
    return trials


def _row(cells: list[str]) -> tuple[list[str], bool]:
    return cells, len(set(cells)) > 1
