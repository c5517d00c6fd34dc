"""What the pages show, as templates are filled with it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from optuna.distributions import CategoricalDistribution

from mft_ray.config import load_config
from mft_ray.config.params import describe
from mft_ray.dashboard import figures
from mft_ray.errors import UserError
from mft_ray.models.names import MASK, TRACEBACK, find
from mft_ray.report import figures as report_figures
from mft_ray.report import leaderboard, verdict
from mft_ray.report.endings import numbers, why
from mft_ray.report.next_steps import next_steps
from mft_ray.runs.fft_model import FftModel
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.live.snapshot import Live, Phase
from mft_ray.runs.live.steering import trial_folder
from mft_ray.runs.records import Trial
from mft_ray.searches.space import build_space, first_point
from mft_ray.utils import formatting as units
from mft_ray.utils.files import read_json
from mft_ray.utils.json_types import JsonObject

_LOG_LINES = 14


@dataclass(frozen=True)
class Field:
    """A setting in the form for a trial of one's own.

    Attributes:
        name: name of the setting.
        value: what it is to be, as text.
        choices: what it can be, where these are few.
        about: what it can be, in words.
    """

    name: str
    value: str
    choices: tuple[str, ...]
    about: str


def state(live: Live) -> JsonObject:
    """Return what the head of the page says: the stage, what goes on, the best so far."""
    run, folder = live.run, RunFolder(live.run.folder)
    unit = units.unit(run.baseline.metric)
    best = run.winner
    title = "Best on validation" if live.phase is Phase.DONE else "Best so far"
    cards = [
        ("FFT", unit.score(run.baseline.validation.score), "on validation"),
        (title, unit.score(best.score if best else None), f"trial {best.trial_id}" if best else "none"),
        (f"{title}, against FFT", unit.delta(best.delta_fft if best else None), "selection, not proof"),
        ("Trials", f"{live.ended} of {live.wanted}", f"{len(live.running)} at work"),
    ]
    return {
        "phase": str(live.phase),
        "working": live.working,
        "done": live.phase is Phase.DONE,
        "can_stop": live.working and live.phase is Phase.TRIALS and not live.ends,
        "ends": live.ends and live.working,
        "cards": cards,
        "banner": verdict.banner(run),
        "last": live.log[-1] if live.log else "",
        "folder": str(run.folder),
        "tensorboard": _tensorboard(folder, folder.tensorboard),
        "next_steps": next_steps(run) if live.phase is Phase.DONE else [],
    }


def board(live: Live) -> JsonObject:
    """Return the leaderboard with what a person may do with each trial."""
    run = live.run
    kept = {trial.trial_id for trial in run.trials if find(RunFolder(run.folder).trial(trial.trial_id))}
    return {
        "parameters": leaderboard.parameters(run),
        "board": leaderboard.lines(run),
        "running": live.running,
        "asked": live.asked,
        "can_stop": live.working,
        "can_pick": kept if not live.working else set(),
        "judged": run.verdict.trial_id if run.verdict else None,
        "queue": [(queued.name, describe(queued.point)) for queued in live.queue],
        "errors": [(trial.trial_id, trial.error) for trial in run.trials if trial.error],
        "metric": units.unit(run.baseline.metric).axis,
    }


def log(live: Live) -> JsonObject:
    """Return the last lines of progress, the newest first."""
    return {"lines": live.log[::-1], "shown": _LOG_LINES}


def drawn(live: Live) -> dict[str, go.Figure]:
    """Return the figures of the whole run that have something to show."""
    run = live.run
    made: dict[str, go.Figure | None] = {}
    if run.curves.fft:
        made["fft"] = report_figures.fft_curve(run)
    if any(run.curves.trials.values()) or run.curves.continued:
        made["trials"] = report_figures.trial_curves(run)
    if any(trial.score is not None for trial in run.trials):
        made["ratio"] = report_figures.score_by_ratio(run)
        made["heat"] = figures.heat_map(run)
        made["parallel"] = figures.parallel(run)
        made["importance"] = figures.importance(run.folder / "study.db")
    if run.verdict is not None:
        compared = [(row.label, row.delta, row.ci95) for row in verdict.comparisons(run) if row.ci95 is not None]
        made["forest"] = report_figures.forest(compared, units.unit(run.verdict.metric), run.verdict.confidence)
    return {name: figure for name, figure in made.items() if figure is not None}


def trial(live: Live, trial_id: str) -> JsonObject:
    """Return what is known of one trial.

    Raises:
        UserError: there is no such trial.
    """
    run, folder = live.run, RunFolder(live.run.folder)
    found = named(live, trial_id)
    out, unit = folder.trial(found.trial_id), units.unit(run.baseline.metric)
    trace = out / TRACEBACK
    facts = [
        ("score", f"{unit.score(found.score)} on validation, step {units.count(found.step)}"),
        ("against FFT", unit.delta(found.delta_fft)),
        ("stopped", _stopped(found, live)),
        ("by these numbers", numbers(found, run)),
        ("steps", units.count(found.steps)),
        ("tokens", units.count(found.tokens)),
        ("time", units.duration(found.seconds)),
    ]
    if found.cost is not None:
        facts += [
            ("operations", units.operations(found.cost.flops)),
            ("memory at the peak", units.size(found.cost.memory)),
            ("trained parameters", units.count(found.cost.trainable)),
            ("size on disk", units.size(found.cost.artifact_bytes)),
        ]
    return {
        "trial": found,
        "facts": [(name, value) for name, value in facts if value],
        "settings": [(name, units.setting(value)) for name, value in found.config.items()],
        "error": found.error,
        "trace": trace.read_text(errors="replace") if trace.exists() else "",
        "kept": str(find(out) or ""),
        "runs": found.trial_id in live.running and live.working,
        "asked": found.trial_id in live.asked,
        "can_pick": not live.working and find(out) is not None,
        "judged": run.verdict is not None and run.verdict.trial_id == found.trial_id,
        "folder": str(run.folder),
        "tensorboard": _tensorboard(folder, folder.tensorboard / found.trial_id),
    }


def trial_figures(live: Live, trial_ids: list[str]) -> dict[str, go.Figure]:
    """Return the curves of some trials and, where one kept its mask, what that removes where.

    Raises:
        UserError: there is no such trial.
    """
    ids = [named(live, each).trial_id for each in trial_ids]
    only = {name: points for name, points in live.run.curves.trials.items() if name in ids}
    curves = live.run.curves.model_copy(update={"trials": only, "continued": []})
    made = {"trials": report_figures.trial_curves(replace(live.run, curves=curves))} if any(only.values()) else {}
    mask = RunFolder(live.run.folder).trial(ids[0]) / MASK
    if len(ids) == 1 and mask.exists():
        from mft_ray.models.inspection import inspect

        seen = inspect([str(mask)])
        layers = {name: part.ratio for name, part in seen.layers[str(mask)].items()}
        modules = {name: part.ratio for name, part in seen.modules[str(mask)].items()}
        made["density"] = figures.densities(layers, modules)
    return made


def form(live: Live, like: str | None) -> JsonObject:
    """Return the form for a trial of one's own, filled from another trial or from the first that is tried.

    Raises:
        UserError: there is no such trial, or no FFT model yet.
    """
    folder = RunFolder(live.run.folder)
    if not folder.fft_model.exists():
        raise UserError("What can be tried depends on the FFT model, which is not there yet.")
    config, depth = load_config(folder.config), FftModel.load(folder.fft_model).depth
    space = build_space(config, depth)
    filled = first_point(config, depth)
    if like:
        filled |= read_json(trial_folder(folder, like) / "config.json", dict)
    fields = []
    for name, distribution in space.items():
        choices: tuple[str, ...] = ()
        if isinstance(distribution, CategoricalDistribution):
            choices, about = tuple(map(str, distribution.choices)), ""
        else:
            about = f"{distribution.low:g} to {distribution.high:g}"  # type: ignore[attr-defined]
        fields.append(Field(name, str(filled.get(name)), choices, about))
    return {"fields": fields, "like": like}


def asked_point(live: Live, given: dict[str, str]) -> dict[str, Any]:
    """Return a filled form as values of the search's settings.

    Args:
        live: the run.
        given: text by name of the setting.

    Raises:
        UserError: a number is none.
    """
    folder = RunFolder(live.run.folder)
    space = build_space(load_config(folder.config), FftModel.load(folder.fft_model).depth)
    return {name: _value(name, text.strip(), space.get(name)) for name, text in given.items()}


def _value(name: str, text: str, distribution: Any) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return next((choice for choice in distribution.choices if str(choice) == text), text)
    try:
        return int(text) if text.lstrip("+-").isdecimal() else float(text)
    except ValueError:
        raise UserError(f"{name} is {text!r}; it must be a number.") from None


def named(live: Live, trial_id: str) -> Trial:
    """Return the trial that is called so.

    Raises:
        UserError: there is no such trial.
    """
    for each in live.run.trials:
        if each.trial_id == trial_id:
            return each
    raise UserError(f"There is no trial {trial_id!r} in {live.run.folder}.")


def _tensorboard(folder: RunFolder, events: Path) -> str:
    """Return the command that shows events of the run; empty where there are none."""
    return f"tensorboard --logdir {shlex.quote(str(folder.tensorboard))}" if events.is_dir() else ""


def _stopped(found: Trial, live: Live) -> str:
    if found.trial_id in live.asked:
        return "was asked to end: it does with its next evaluation"
    return why(found)
