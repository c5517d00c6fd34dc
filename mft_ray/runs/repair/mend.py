"""Damaged files of a run: what can be made again is set aside, what cannot is refused by name.

Every file is on the disk before it takes its place, but disks fail, and runs of earlier versions have files that a
power cut left empty. This looks at all of them before a run goes on: what reads them later finds sound ones or none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import TypeAdapter

from mft_ray.config import load_config
from mft_ray.config.stages import read_settled
from mft_ray.data.store import SPLITS, open_split
from mft_ray.errors import UserError
from mft_ray.evaluation.example_scores import ExampleScores
from mft_ray.models.names import ADAPTER, MASK, MODEL, SCORES, find
from mft_ray.runs.environment import Environments
from mft_ray.runs.fft_model import FftModel
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.records import Baseline, Comparison, Curves, Differences, Leaderboard, StudyName, Trial, Verdict
from mft_ray.runs.repair.damage import check_lines, check_pickle, damage
from mft_ray.runs.study.file import sound
from mft_ray.training.job import Evaluation, Outcome, StopReason
from mft_ray.utils.console import log_warning
from mft_ray.utils.files import Damaged, copy_whole, read_json, set_aside, write_json
from mft_ray.utils.json_types import JsonObject

_T = TypeVar("_T")
_AGAIN = "it is made again"


def mend_run(folder: RunFolder) -> None:
    """Set aside, in ``work/damaged``, what of a run is damaged and can be made again, and say so.

    The run must be held for this process alone.

    Args:
        folder: folder of the run; one that has just been made has nothing to mend.

    Raises:
        UserError: something is damaged that cannot be made again, or not without making all that came of it again.
            Nothing has been changed then.
    """
    mender = _Mender(folder)
    mender.refuse()
    mender.mend()


class _Mender:
    def __init__(self, folder: RunFolder) -> None:
        self.folder, self.root = folder, folder.root
        self.begun = set(read_settled(folder.settled) or {}) - {"data"}
        board = _sound_or(folder.leaderboard, Leaderboard.load, Leaderboard(trials=[]))
        self.board = {row.trial_id: row for row in board.trials}
        self.curves: Curves = _sound_or(folder.curves, Curves.load, Curves())

    def refuse(self) -> None:
        """Look for what cannot be made again, before anything is changed."""
        folder = self.folder
        if self.begun:
            self._cannot_if(_damaged_data(folder.data), "of the data that everything in this run was made from")
        if self.begun - {"baseline"}:
            what = "of the FFT model that this run's trials are learned on, and their masks fit no other"
            self._cannot_if(damage(folder.fft / MODEL), what)
        # Where the baseline is sound, nothing but a curve is lost; else it would be trained again.
        if self.begun - {"baseline"} and folder.fft.exists() and self._baseline_lost():
            outcome = folder.fft / "outcome.json"
            gone = None if outcome.exists() else Damaged(outcome, "is gone")
            self._cannot_if(gone or _wrong(outcome, Outcome.load), "how FFT was trained, and its score is damaged too")
        if (found := _wrong(folder.looks, _of_looks)) and "looks" not in self._verdict():
            raise UserError(
                f"{found}: for which trials the test examples were looked at is not known any more, and the verdict "
                f"does not say. If the run never had a verdict, delete the file and --resume again; else keep "
                f"{folder.best} and judge it on examples that are new, in another run."
            )
        self._refuse_budget()

    def _baseline_lost(self) -> Damaged | None:
        """Return what is wrong with the record of FFT's score, its scores among it, if that is to be made again."""
        folder = self.folder
        found = _wrong(folder.fft_model, FftModel.load)
        for path in folder.scores.glob("fft-validation-*"):
            found = found or _wrong(path, _of_scores)
        return found or (_wrong(folder.baseline, Baseline.load) if self._baseline_copy() is None else None)

    def _baseline_copy(self) -> JsonObject | None:
        """Return what the leaderboard has of ``baseline.json``."""

        def read(path: Path) -> JsonObject:
            return read_json(path, lambda content: dict(content["baseline"]))

        return _sound_or(self.folder.leaderboard, read, None)

    def _refuse_budget(self) -> None:
        file = self.folder.work / "spent.json"
        found = _wrong(file, _of_spent)
        if found is None or not self.folder.config.exists():
            return
        limits = load_config(self.folder.config).search.budget
        if limits.hours or limits.tokens or limits.dollars:
            raise UserError(
                f"{found}: how much of search.budget is spent is not known any more. Delete the file, and --resume "
                "with --set search.budget.hours, .tokens or .dollars at what may still be spent."
            )

    def _cannot_if(self, found: Damaged | None, what: str) -> None:
        if found is None:
            return
        raise UserError(
            f"{found}. It is {what}: it cannot be made again. Put a copy of it back and --resume again, or start a new "
            f"run. What of {self.root} can be kept: report.html, leaderboard.json, and best/ once there is a verdict."
        )

    def mend(self) -> None:
        """Set aside what can be made again."""
        folder = self.folder
        self._mend_looks()
        self._mend_models()
        self._mend_baseline()
        for trial in sorted(folder.trials.glob("*")):
            self._mend_trial(trial)
        if (found := damage(folder.best)) is not None:
            self._aside(folder.best, found, _AGAIN)
        for path, read, then in self._others():
            if (found := _wrong(path, read)) is not None:
                self._aside(path, found, then)
        for sub in sorted(folder.seeds.glob("*")):
            if found := damage(sub):
                self._aside(sub, found, "that seed is trained again where a verdict needs it")
        self._mend_tune()

    def _others(self) -> Iterator[tuple[Path, Callable[[Path], object], str]]:
        folder, root = self.folder, self.root
        yield folder.leaderboard, Leaderboard.load, _AGAIN
        yield folder.curves, Curves.load, _AGAIN
        yield folder.verdict, Verdict.load, f"{_AGAIN}, by the scores that there are"
        yield folder.comparison, Comparison.load, f"{_AGAIN} from what was trained"
        yield folder.data_counts, _of_mapping, "what became of each row is not known any more; nothing else needs it"
        yield folder.environment, Environments.load, "what the run was begun with is not known any more"
        yield folder.discordant, Differences.load, "the report shows no examples until there is another verdict"
        yield folder.study_name, StudyName.load, "the study goes on under another name, with what study.db has of it"
        yield folder.work / "spent.json", _of_spent, "what trials spend is counted anew"
        yield root / "experiments.json", _of_names, "the experiments that are named now are this run's"
        for path in folder.scores.glob("*.json"):
            yield path, _of_scores, "that is scored again where it is needed"
        for path in folder.trials.glob(f"*/{SCORES}"):
            yield path, ExampleScores.load, "its examples are not shown beside another trial's"
        for path in folder.work.glob("flatness/*.json"):
            yield path, _of_mapping, _AGAIN
        for path in folder.tune.glob("*.json"):
            yield path, _of_counts, _AGAIN
        for path in root.glob("tasks/seed-*/*.jsonl"):
            yield path, check_lines, _AGAIN

    def _mend_looks(self) -> None:
        looks, verdict = self.folder.looks, self._verdict()
        if found := _wrong(looks, _of_looks):
            self._aside(looks, found, "the verdict says the same")
            write_json(looks, verdict["looks"])

    def _mend_models(self) -> None:
        """Set aside what was trained and can be trained again, with what was scored of it."""
        folder, again = self.folder, "that is trained again"
        if found := _damaged_data(folder.data):
            self._aside(folder.data, found, "it is prepared again")
        if found := damage(folder.start_model):
            self._aside(folder.start_model, found, f"{_AGAIN}, from its seed")
        if found := _wrong(folder.fft / "outcome.json", Outcome.load) or damage(folder.fft / MODEL):
            if self.begun <= {"baseline"}:
                self._aside(folder.fft, found, "FFT is trained again")
                self._drop(folder.fft_model, folder.baseline, *folder.scores.glob("fft-*"))
            else:
                self._aside(folder.fft / "outcome.json", found, "the report goes without FFT's curve")
        trained = [(folder.continued, "continued"), (self.root, "")]
        trained += [(path, f"rival-{path.name}") for path in folder.rivals.glob("*")]
        trained += [(path, path.name) for path in folder.methods.glob("*")]
        for out, name in trained:
            found = _wrong(out / "outcome.json", Outcome.load) or self._artifact(out)
            if found and out != self.root:
                self._aside(out, found, again)
                self._drop(*folder.scores.glob(f"{name}-*"))
            elif found:  # of mft-ray train, beside which there are other things
                self._aside(found.path, found, again)
                self._drop(*(out / each for each in ("outcome.json", "checkpoints", MASK, ADAPTER, MODEL)))

    def _artifact(self, out: Path) -> Damaged | None:
        # A search's own best/ is not what a training left.
        names = (MASK, ADAPTER, MODEL) if (out / "outcome.json").exists() else ()
        return next((found for name in names if (found := damage(out / name))), None)

    def _mend_baseline(self) -> None:
        folder = self.folder
        public, kept = folder.baseline, folder.fft_model
        if found := self._baseline_lost():
            self._aside(found.path, found, _AGAIN)
            self._drop(kept)
        if found := _wrong(public, Baseline.load):
            copy = self._baseline_copy()
            self._aside(public, found, _AGAIN if copy is None else "leaderboard.json has the same")
            if copy is not None:
                write_json(public, copy)

    def _mend_trial(self, trial: Path) -> None:
        config, outcome, error = (trial / name for name in ("config.json", "outcome.json", "error.json"))
        row = self.board.get(trial.name)
        if (found := _wrong(error, _of_error)) is not None:
            known = row and row.error
            self._aside(error, found, "the leaderboard has the reason" if known else "the reason is not known any more")
            write_json(error, {"error": known or "the reason is not known any more: error.json was damaged"})
        if found := _wrong(config, _of_mapping):
            if row is None:
                self._leave_out(trial, found)
                return
            self._aside(config, found, "leaderboard.json has the same")
            write_json(config, row.config)
        if found := _wrong(outcome, Outcome.load):
            ended = _outcome(row, self.curves) if row else None
            if ended is None:
                self._leave_out(trial, found)
                return
            self._aside(outcome, found, f"{_AGAIN} of leaderboard.json and curves.json")
            ended.save(outcome)
        artifact = find(trial)
        if artifact is not None and (found := damage(artifact)) is not None and not self._restored(artifact, found):
            self._leave_out(trial, found)

    def _restored(self, artifact: Path, found: Damaged) -> bool:
        """Say whether a trial's mask or adapter could be taken from what the run's winner left."""
        best = self.folder.best
        copy = best / artifact.name
        if artifact.name == MODEL or not copy.exists() or damage(best):
            return False
        made_of = yaml.safe_load((best / "config.yaml").read_text(encoding="utf-8")).get("trial_id")
        if made_of != artifact.parent.name:
            return False
        self._aside(artifact, found, "best/ has the same")
        copy_whole(copy, artifact)
        return True

    def _leave_out(self, trial: Path, found: Damaged) -> None:
        self._aside(trial, found, f"trial {trial.name} is trained again, or another one in its place")

    def _mend_tune(self) -> None:
        folder = self.folder
        experiments = [path for path in sorted(folder.tune.glob("*")) if path.is_dir()]
        # What a server has of it comes back from there.
        lost = not (folder.study_name.exists() or sound(folder.study) or sound(folder.study_copy))
        if lost:
            found = Damaged(folder.study, "is damaged or gone, and so is its copy")
            self._aside(folder.study, found, "the sampler begins anew; trials that have ended are kept")
        for path in experiments:
            of_lost = Damaged(path, "belongs to a study that is damaged or gone") if lost else None
            if found_in := of_lost or _damaged_experiment(path):
                then = "the search goes on without it: trials that have ended are kept, those at work begin anew"
                self._aside(path, found_in, then)
                self._drop(path.with_name(f"{path.name}.json"))

    def _verdict(self) -> JsonObject:
        return _sound_or(self.folder.verdict, lambda path: Verdict.load(path).model_dump(exclude_unset=True), {})

    def _aside(self, path: Path, found: Damaged, then: str) -> None:
        if path.exists():
            log_warning(f"{found}: {then}")
            self._drop(path)

    def _drop(self, *paths: Path) -> None:
        for path in paths:
            if path.exists():
                set_aside(path, self.folder.work / "damaged" / path.relative_to(self.root))


def _outcome(row: Trial, curves: Curves) -> Outcome | None:
    """Return how a trial ended as the leaderboard and its curve have it; None if they do not say."""
    points = curves.trials.get(row.trial_id)
    if row.status not in ("completed", "stopped") or row.stopped_reason not in set(StopReason) or not points:
        return None
    nan = float("nan")
    history = [
        Evaluation(
            step=point.step,
            score=nan if point.score is None else point.score,
            standard_error=nan,
            tokens=point.tokens or 0,
            seconds=point.seconds or 0.0,
            loss=nan,
            ratio=point.ratio or 0.0,
            eligible=point.step == row.step,
        )
        for point in points
    ]
    best = next((place for place, point in enumerate(points) if point.step == row.step), None)
    reason = StopReason(row.stopped_reason)
    if row.watched is None:
        best = None
    # Of the checkpoint, where the curve is of a model whose weights were held in fewer bits.
    whole = None if best is None or row.watched == history[best].score else row.watched
    return Outcome(reason, history, best, row.score, row.cost, row.stop, whole)


# Of Tune's states of an experiment, whatever their names end in.
_PICKLES = ("tuner.pkl", "searcher-state", "search_gen_state")


def _damaged_data(folder: Path) -> Damaged | None:
    """Return what is wrong with prepared splits: what they are made of, and whether their rows can be read."""
    if not folder.exists() or (found := damage(folder)):
        return found if folder.exists() else None
    try:
        for split in SPLITS:
            open_split(folder, split)
    except Damaged as error:
        return error
    except UserError as error:
        return Damaged(folder, f"lacks a split ({error})")
    return None


def _damaged_experiment(path: Path) -> Damaged | None:
    """Return what is wrong with the newest state of each kind that Tune keeps of an experiment."""
    newest: dict[str, Path] = {}
    for file in sorted(each for each in path.iterdir() if each.is_file()):
        newest[re.split(r"-\d{4}-\d\d-", file.name)[0]] = file
    state = newest.get("experiment_state")
    if state and (found := _wrong(state, _of_experiment)):
        return found
    pickles = [file for name, file in newest.items() if name in _PICKLES]
    return next((found for file in pickles if (found := _wrong(file, check_pickle))), None)


def _wrong(path: Path, read: Callable[[Path], object]) -> Damaged | None:
    try:
        read(path)
    except FileNotFoundError:
        return None
    except Damaged as found:
        return found
    return None


def _sound_or(path: Path, read: Callable[[Path], _T], otherwise: _T) -> _T:
    try:
        return read(path)
    except (FileNotFoundError, Damaged):
        return otherwise


def _of_mapping(path: Path) -> object:
    return read_json(path, TypeAdapter(JsonObject).validate_python)


def _of_error(path: Path) -> object:
    return read_json(path, lambda content: TypeAdapter(str).validate_python(content["error"]))


def _of_names(path: Path) -> object:
    return read_json(path, lambda content: TypeAdapter(list[str]).validate_python(content["names"]))


def _of_scores(path: Path) -> object:
    return read_json(path, TypeAdapter(list[float]).validate_python)


def _of_looks(path: Path) -> object:
    return read_json(path, TypeAdapter(list[dict[str, str]]).validate_python)


def _of_spent(path: Path) -> object:
    return read_json(
        path, lambda content: (float(content["hours"]), TypeAdapter(dict[str, int]).validate_python(content["tokens"]))
    )


def _of_counts(path: Path) -> object:
    """Read what `mft_ray.searches.tuner.Experiment` keeps."""
    return read_json(path, lambda content: [int(content[key]) for key in ("earlier", "trials", "concurrent")])


def _of_experiment(path: Path) -> object:
    return read_json(path, lambda content: (list(content["trial_data"]), dict(content["runner_data"])))
