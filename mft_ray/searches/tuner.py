"""The search itself: Ray Tune over trials, started, resumed, or given more of them."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, cast

import ray.tune
from ray.tune.logger import JsonLoggerCallback

from mft_ray.config import METHODS
from mft_ray.config.params import Params
from mft_ray.errors import OutOfTime, RunFailed
from mft_ray.runs.fft_model import FftModel
from mft_ray.runs.folder import RunFolder, has_ended
from mft_ray.runs.live.steering import asked_to_end, queue, take
from mft_ray.runs.settled import begun_trials
from mft_ray.runs.study.file import mend
from mft_ray.runs.study.live import LiveStudy, explained
from mft_ray.runs.study.opening import live_study
from mft_ray.searches.budget import Budget, spent
from mft_ray.searches.more_trials import continue_search
from mft_ray.searches.optuna_search import StudySearch, build_search
from mft_ray.searches.progress import TrialProgress
from mft_ray.searches.space import build_space, left_out, points_to_evaluate
from mft_ray.searches.stopper import TrialStopper
from mft_ray.searches.trial import MaskTrial, TrialPlan
from mft_ray.utils.console import log, log_warning
from mft_ray.utils.files import read_json, write_json
from mft_ray.utils.formatting import unit

_NAME = "search"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# A driver waits for its workers. If it held CPUs, drivers could take what their workers need and wait for
# ever. It asks for a thousandth of being the head node (Tune insists on something): there it survives the nodes
# that come and go.
DRIVER = {"node:__internal_head__": 0.001}


@dataclass(frozen=True)
class Experiment:
    """One of Tune's experiments: a search that is given more trials has several, one after the other, on one study.

    Attributes:
        name: name of its folder.
        earlier: trials that had begun before it.
        trials: that it runs.
        concurrent: number of them at once.
    """

    name: str
    earlier: int
    trials: int
    concurrent: int

    @classmethod
    def load(cls, path: Path) -> Experiment | None:
        """Read what `save` wrote beside an experiment's folder; None for one of an earlier version.

        Args:
            path: path of the experiment's folder.
        """
        file = path.with_name(f"{path.name}.json")
        return read_json(file, lambda content: cls(**content)) if file.exists() else None

    def save(self, folder: RunFolder) -> None:
        """Keep it beside the experiment's folder."""
        folder.tune.mkdir(parents=True, exist_ok=True)
        write_json(folder.tune / f"{self.name}.json", asdict(self))


def run_trials(plan: TrialPlan, folder: RunFolder, depth: int, concurrent: int, progress: TrialProgress) -> None:
    """Run all trials of a search, or those that an interrupted one still owes, or more than a finished one has.

    Args:
        plan: what all trials share.
        folder: folder of the run.
        depth: decoder layers of the backbone.
        concurrent: trials that run at once.
        progress: told of every trial.

    Raises:
        RunFailed: the study's file cannot be used, or several trials have failed with the same error.
    """
    # Tune's own tables would bury ours.
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    # Between two snapshots no trial must both begin and end: it would be lost with the process. Tune's own are
    # 10 seconds apart. A snapshot has all trials in it: of many it is made less often.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", str(max(1.0, plan.config.search.trials / 200)))
    # Curves for TensorBoard and tables are in the run folder. Of Tune's own logs it reads one when it resumes.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    logging.getLogger("ray.tune.execution.tune_controller").addFilter(_said_otherwise)
    trainable = ray.tune.with_resources(ray.tune.with_parameters(MaskTrial, plan=plan), DRIVER)
    wanted = plan.config.search.trials
    Budget(plan.config.search.budget, folder.work)  # it may have been raised since it was spent
    folder.asked_to_end.unlink(missing_ok=True)  # whoever goes on with a search wants it to go on
    if mend(folder.study, folder.study_copy):
        log_warning(f"{folder.study.name} was damaged or gone; a copy from after its last change has taken its place")
    with explained(folder), live_study(folder, plan.config.search.storage) as study:
        begun = _resumed(trainable, plan, folder, depth, study, concurrent, progress)
        while (missing := wanted - begun) > 0 and not spent(folder.work) and not asked_to_end(folder):
            experiment = Experiment(_next_name(folder), begun, missing, concurrent)
            _fit(_new(trainable, plan, folder, depth, study, experiment, progress), folder, experiment, progress)
            before, begun = begun, begun_trials(folder)
            if begun == before:  # none of them could begin, and none would
                return


def _resumed(
    trainable: Any,
    plan: TrialPlan,
    folder: RunFolder,
    depth: int,
    study: LiveStudy,
    concurrent: int,
    progress: TrialProgress,
) -> int:
    """Run what the last experiment still owes, if there is one; return how many trials have begun."""
    wanted = plan.config.search.trials
    paths = _experiments(folder)
    if not paths:
        # Where Tune's state was damaged, and set aside, trials have ended.
        _forget_lost_trials(folder, {path.parent.name for path in folder.trials.glob("*/error.json")})
        shutil.rmtree(folder.tune, ignore_errors=True)
        return begun_trials(folder)
    # What Tune restores is this one, with its own state.
    algorithm = _algorithm(plan, depth, study)
    tuners = [
        ray.tune.Tuner.restore(str(path), trainable, resume_unfinished=True, restart_errored=False) for path in paths
    ]
    _forget_lost_trials(folder, {Path(result.path).name for tuner in tuners for result in tuner.get_results()})
    earlier = sum(len(tuner.get_results()) for tuner in tuners[:-1])
    last = Experiment.load(paths[-1]) or Experiment(paths[-1].name, earlier, wanted - earlier, concurrent)
    if last.concurrent != concurrent or last.earlier + last.trials > wanted:
        # What an experiment was begun with Tune does not change: another goes on with what is wanted now.
        _closed(folder, last.name).touch()
        if _unfinished(folder):
            log(f"trials at work end as they began; those after them run {concurrent} at a time")
    _attach(algorithm, folder, last.name)
    _fit(tuners[-1], folder, last, progress)
    return begun_trials(folder)


def _fit(tuner: ray.tune.Tuner, folder: RunFolder, experiment: Experiment, progress: TrialProgress) -> None:
    progress.earlier = experiment.earlier
    with _ending_in_order(progress) as end:
        progress.give_up = partial(_give_up, _closed(folder, experiment.name), end)
        tuner.fit()
    if progress.gave_up:
        raise RunFailed(f"{progress.gave_up} Once the cause is gone: --resume {folder.named}")


def _give_up(closed: Path, end: Callable[[], object]) -> None:
    """Have no more trials begin, and those at work end in order, so that they can be resumed."""
    closed.touch()
    end()


def _experiments(folder: RunFolder) -> list[Path]:
    """Return the folders of Tune's experiments that can be restored, oldest first.

    Without a snapshot there is nothing to restore: it was interrupted before its first trial began.
    """
    begun = {path.parent for path in folder.tune.glob("*/experiment_state-*.json")}
    paths = [path for path in begun if (path / "tuner.pkl").exists()]
    return sorted(paths, key=lambda path: (len(path.name), path.name))


def _next_name(folder: RunFolder) -> str:
    number = len(_experiments(folder)) + 1
    return _NAME if number == 1 else f"{_NAME}-{number}"


def _closed(folder: RunFolder, name: str) -> Path:
    """Return the sign that an experiment begins no more trials."""
    return folder.tune / f"{name}.closed"


def _unfinished(folder: RunFolder) -> bool:
    return any(not has_ended(path.parent) for path in folder.trials.glob("*/config.json"))


def _over(folder: RunFolder, name: str) -> bool:
    return spent(folder.work) or asked_to_end(folder) or _closed(folder, name).exists()


def _algorithm(plan: TrialPlan, depth: int, study: LiveStudy, points: list[Params] | None = None) -> StudySearch:
    search = plan.config.search
    return build_search(
        study,
        build_space(plan.config, depth),
        points or [],
        search.sampler,
        search.startup_trials,
        search.seed,
        objectives=_objectives(plan),
    )


def _objectives(plan: TrialPlan) -> int:
    return 1 if plan.config.search.objectives == "score" else 2


def _attach(algorithm: StudySearch, folder: RunFolder, name: str) -> None:
    """Have a search algorithm listen to what is asked of an experiment."""
    algorithm.over = partial(_over, folder, name)
    algorithm.queue, algorithm.take = partial(queue, folder), partial(take, folder)


def _new(
    trainable: Any,
    plan: TrialPlan,
    folder: RunFolder,
    depth: int,
    study: LiveStudy,
    experiment: Experiment,
    progress: TrialProgress,
) -> ray.tune.Tuner:
    search = plan.config.search
    shutil.rmtree(folder.tune / experiment.name, ignore_errors=True)  # of one that was interrupted as it began
    if experiment.earlier and study.id is not None:
        algorithm = continue_search(study, search.sampler, search.startup_trials, search.seed, _objectives(plan))
    else:
        if note := left_out(plan.config, depth):
            log_warning(note)
        # There are such only where the study was damaged.
        tried = [read_json(path, dict) for path in folder.trials.glob("*/config.json")]
        study.begin_anew()
        points = [point for point in points_to_evaluate(plan.config, depth) if point not in tried]
        algorithm = _algorithm(plan, depth, study, points)
    score = unit(plan.config.evaluation.metric)
    fft = FftModel.load(folder.fft_model)
    algorithm.tell_study(score.label, {"FFT": fft.score, "FFT, standard error": fft.standard_error})
    study.keep()
    _attach(algorithm, folder, experiment.name)
    experiment.save(folder)
    return ray.tune.Tuner(
        trainable,
        tune_config=ray.tune.TuneConfig(
            search_alg=algorithm,  # which knows what to maximise
            num_samples=experiment.trials,
            trial_dirname_creator=_trial_id,
            max_concurrent_trials=experiment.concurrent,
            reuse_actors=True,
        ),
        run_config=ray.tune.RunConfig(
            name=experiment.name,
            storage_path=str(folder.tune),
            callbacks=[progress, JsonLoggerCallback()],
            stop=TrialStopper(plan.stop, METHODS[search.method].recipe(plan.config).train.steps),
            verbose=0,
            # A driver that dies is started again, and its trial goes on from its workers' own checkpoint.
            failure_config=ray.tune.FailureConfig(max_failures=1),
            checkpoint_config=ray.tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )


def _said_otherwise(record: logging.LogRecord) -> bool:
    """Keep back what Tune says of a driver that died, with a traceback: our progress says it in a line."""
    return not record.getMessage().startswith("Trial task failed")


def _nothing(*given: object) -> None:
    """Stand in for what Tune does before it has begun."""


@contextmanager
def _ending_in_order(progress: TrialProgress) -> Iterator[Callable[[], object]]:
    """Let Tune save its state at the first of `_SIGNALS` (SIGTERM: a stopped job), then raise; a second raises at once.

    Args:
        progress: told by Tune that it has begun.

    Yields:
        What has Tune end in order and `fit` return, as if by itself; does nothing outside the main thread.

    Raises:
        OutOfTime: SIGUSR1 came.
        KeyboardInterrupt: another of them came.
    """
    caught: list[int] = []
    end_tune: Callable[..., object] = _nothing
    # Tune would take a SIGINT for itself and return as if nothing had happened.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    if threading.current_thread() is not threading.main_thread():  # there Tune listens to no signal
        yield end_tune
        return
    before = {each: signal.getsignal(each) for each in _SIGNALS}

    def first(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        log_warning("ending in order: what is finished is being saved (once more ends at once)")
        for each in _SIGNALS:
            signal.signal(each, before[each] if each == signal.SIGUSR1 else signal.default_int_handler)
        end_tune(number, frame)

    def listen() -> None:
        # Tune takes SIGUSR1 for itself whatever it is told, and returns as it does for SIGINT.
        nonlocal end_tune
        end_tune = cast(Callable[..., object], signal.getsignal(signal.SIGUSR1))
        for each in _SIGNALS:
            signal.signal(each, first)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})

    progress.begun = listen
    # One that comes while Tune listens and we do not yet waits.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        yield lambda: end_tune(signal.SIGUSR1, None)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    if caught:
        raise OutOfTime if caught[0] == signal.SIGUSR1 else KeyboardInterrupt


def _trial_id(trial: Any) -> str:
    """Name Tune's folder of a trial as ours is named."""
    return str(trial.trial_id)


def _forget_lost_trials(folder: RunFolder, known: set[str]) -> None:
    """Delete trials that began after Tune's last snapshot: others take their place, with ids of their own."""
    for path in folder.trials.glob("*"):
        if path.name not in known and not (path / "outcome.json").exists():
            shutil.rmtree(path)
