"""A run's Optuna study as optuna-dashboard shows it: a copy in memory, with what the run knows of each trial.

The study itself is the search's. Nothing is written to it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from uuid import NAMESPACE_URL, uuid5

import optuna
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages import InMemoryStorage
from optuna.study import Study
from optuna.trial import FrozenTrial

from mft_ray.dashboard.figures import history
from mft_ray.errors import UserError
from mft_ray.models.names import MASK
from mft_ray.report import verdict
from mft_ray.report.endings import numbers, why
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.live.snapshot import Live
from mft_ray.runs.records import Trial
from mft_ray.runs.study.file import open_copy
from mft_ray.utils import formatting as units
from mft_ray.utils.json_types import JsonObject

# Attribute by which a search names Optuna's trials (`mft_ray.searches.optuna_search`, which needs Ray).
_TRIAL_ID = "trial_id"
_OF_PAGE = "dashboard:"  # prefix of attributes that optuna-dashboard sets; they are of trials by Optuna's identifiers
_ARTIFACT = "artifacts:"  # prefix of Optuna's own attributes of artifacts


@dataclass
class MaskFiles:
    """Optuna's artifact store over the masks that a run's trials have kept; nothing can be added or removed.

    Attributes:
        paths: path of a mask by the identifier of its artifact.
    """

    paths: dict[str, Path] = field(default_factory=dict)

    def add(self, trial_id: str, path: Path) -> JsonObject:
        """Take a file of a trial; return the attributes that name it.

        Args:
            trial_id: identifier of the trial.
            path: path of the file.
        """
        name = str(uuid5(NAMESPACE_URL, f"{trial_id}/{path.name}"))
        self.paths[name] = path
        filename = f"{trial_id}-{path.name}"
        about = {"artifact_id": name, "filename": filename, "mimetype": "application/octet-stream", "encoding": None}
        return {f"{_ARTIFACT}{name}": json.dumps(about)}

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open a mask."""
        try:
            return self.paths[artifact_id].open("rb")
        except (KeyError, OSError) as error:  # it may have gone since: only the best trials keep theirs
            raise ArtifactNotFound(artifact_id) from error

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Refuse."""
        raise PermissionError("the masks of a run are the search's")

    def remove(self, artifact_id: str) -> None:
        """Refuse."""
        raise PermissionError("the masks of a run are the search's")


def annotated(database: Path, live: Live) -> tuple[InMemoryStorage, MaskFiles]:
    """Return a copy of a study with notes, reasons and masks of its trials, and FFT's line in a figure.

    Args:
        database: path of the study's file, in which there is one study.
        live: the run.

    Raises:
        UserError: there is another number of studies in it.
    """
    from optuna_dashboard._note import get_note_from_system_attrs, save_note_with_version

    source = open_copy(database)
    studies = source.get_all_studies()
    if len(studies) != 1:
        raise UserError(f"{database} holds {len(studies)} studies, and a search has one. Look again in a moment.")
    [known] = studies
    trials = sorted(source.get_all_trials(known._study_id), key=lambda trial: trial.number)
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would say that it has made a study
    storage, masks = InMemoryStorage(), MaskFiles()
    # Optuna counts studies in files from 1 and those in memory from 0: its page has the same address either way.
    storage.delete_study(storage.create_new_study(known.directions))
    study_id = storage.create_new_study(known.directions, known.study_name)

    def note(trial: int | None, text: str, earlier: int | None) -> None:
        # Optuna's page could be written to before, and what a person wrote there is in the study.
        own = get_note_from_system_attrs(known.system_attrs, earlier)["body"]
        save_note_with_version(storage, study_id, trial, 1, "\n\n".join(filter(None, [text, own])))

    for name, value in known.user_attrs.items():
        storage.set_study_user_attr(study_id, name, value)
    for name, value in known.system_attrs.items():
        if not name.startswith(_OF_PAGE):
            storage.set_study_system_attr(study_id, name, value)
    note(None, _of_study(live), None)
    by_name = {trial.trial_id: trial for trial in live.run.trials}
    for trial in trials:
        its, earlier = by_name.get(trial.user_attrs.get(_TRIAL_ID, "")), trial._trial_id
        if its is not None:
            _complete(trial, its, live, masks)
        note(storage.create_new_trial(study_id, trial), "" if its is None else _of_trial(its, live), earlier)
    _draw(Study(known.study_name, storage), live, trials)
    return storage, masks


def _complete(trial: FrozenTrial, its: Trial, live: Live, masks: MaskFiles) -> None:
    """Add to one of Optuna's trials what its run knows of it."""
    facts: Mapping[str, Any] = {
        "against FFT": its.delta_fft,
        "why it ended": "" if its.trial_id in live.running else why(its),
    }
    trial.user_attrs = {**trial.user_attrs, **{name: value for name, value in facts.items() if value not in (None, "")}}
    path = RunFolder(live.run.folder).trial(its.trial_id) / MASK
    if path.exists():
        trial.system_attrs = {**trial.system_attrs, **masks.add(its.trial_id, path)}


def _of_trial(its: Trial, live: Live) -> str:
    """Return what is said of a trial, in Markdown."""
    unit = units.unit(live.run.baseline.metric)
    score = f"{unit.score(its.score)} on validation at step {units.count(its.step)}"
    against = "" if its.delta_fft is None else f", {unit.delta(its.delta_fft)} against FFT"
    ended = "Now" if its.trial_id in live.running else "Why it ended"
    scored = "No score." if its.score is None else f"{score}{against}."
    parts = [f"## Trial {its.trial_id}", scored, f"{ended}: {why(its)}. {numbers(its, live.run)}"]
    if its.error:
        parts.append(f"```\n{its.error}\n```")
    return "\n\n".join([*parts, f"[All that is known of it](/trial/{its.trial_id})"])


def _of_study(live: Live) -> str:
    """Return what is said of the study, in Markdown."""
    run = live.run
    unit, fft = units.unit(run.baseline.metric), run.baseline.validation.score
    parts = [f"## {run.name}: {run.product} search", f"Values are of {unit.label.lower()} on validation."]
    if fft is not None:
        parts.append(f"FFT has {fft:.4g} (**{unit.score(fft)}**): the dashed line of the figure under Analytics.")
    if run.verdict is not None:
        banner = verdict.banner(run)
        parts.append(f"**{banner.label}.** {banner.sentence}")
    parts.append(
        "Trials are numbered here as Optuna does; their names, as everywhere else, are in their notes and in the "
        f"attribute {_TRIAL_ID}. This is a copy, made anew as the search goes on: nothing can be changed here."
    )
    return "\n\n".join(parts)


def _draw(study: Study, live: Live, trials: list[FrozenTrial]) -> None:
    from optuna_dashboard import save_plotly_graph_object

    figure = history(live.run, {trial.user_attrs.get(_TRIAL_ID, ""): trial.number for trial in trials})
    if figure is not None:
        save_plotly_graph_object(study, figure, graph_object_id="fft")
