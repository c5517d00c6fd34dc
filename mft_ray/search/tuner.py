"""The search itself: Ray Tune over trials, started or resumed."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import ray.tune

from mft_ray.search.backstop import Backstop
from mft_ray.search.budget import spent
from mft_ray.search.capacity import concurrent_trials
from mft_ray.search.folder import RunFolder
from mft_ray.search.progress import TrialProgress, say
from mft_ray.search.space import build_space, left_out, points_to_evaluate
from mft_ray.search.study import build_search
from mft_ray.search.study_file import explained, keep_copy, mend, new_storage
from mft_ray.search.trial import MaskTrial, TrialPlan
from mft_ray.training.recipes import recipe

_NAME = "search"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A driver waits for its workers. If it held CPUs, drivers could take what their workers need and wait for
# ever. It asks for a thousandth of being the head node (Tune insists on something): there it survives the nodes
# that come and go.
DRIVER = {"node:__internal_head__": 0.001}


def run_trials(plan: TrialPlan, folder: RunFolder, depth: int, progress: TrialProgress) -> None:
    """Run all trials of a search, or those that an interrupted one still owes.

    Args:
        plan: what all trials share.
        folder: of the run.
        depth: decoder layers of the backbone.
        progress: told of every trial.

    Raises:
        RunFailed: the study's file cannot be used.
    """
    # Tune's own tables would bury ours.
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    # Between two snapshots no trial must both begin and end: it would be lost with the process. Tune's own are
    # 10 seconds apart.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1")
    logging.getLogger("ray.tune.execution.tune_controller").addFilter(_said_otherwise)
    trainable = ray.tune.with_resources(ray.tune.with_parameters(MaskTrial, plan=plan), DRIVER)
    path = folder.tune / _NAME
    with explained(folder.study):
        # Without a snapshot there is nothing to restore: it was interrupted before its first trial began.
        if ray.tune.Tuner.can_restore(str(path)) and any(path.glob("experiment_state-*.json")):
            tuner = _restored(trainable, path, folder)
        else:
            tuner = _new(trainable, plan, folder, depth, progress)
        with _ending_in_order():
            tuner.fit()


def _restored(trainable: Any, path: Path, folder: RunFolder) -> ray.tune.Tuner:
    if mend(folder.study, folder.study_copy):
        say(f"{folder.study.name} was damaged or gone; a copy from after its last change has taken its place")
    tuner = ray.tune.Tuner.restore(str(path), trainable, resume_unfinished=True, restart_errored=False)
    _forget_lost_trials(folder, {Path(result.path).name for result in tuner.get_results()})
    return tuner


def _new(trainable: Any, plan: TrialPlan, folder: RunFolder, depth: int, progress: TrialProgress) -> ray.tune.Tuner:
    for leftover in (folder.trials, folder.tune):
        shutil.rmtree(leftover, ignore_errors=True)
    search = plan.config.search
    if note := left_out(plan.config, depth):
        say(note)
    algorithm = build_search(
        new_storage(folder.study),
        build_space(plan.config, depth),
        points_to_evaluate(plan.config, depth),
        search.sampler,
        search.startup_trials,
        search.seed,
        objectives=1 if search.objectives == "score" else 2,
    )
    algorithm.over = partial(spent, folder.work)
    algorithm.keep = partial(keep_copy, folder.study, folder.study_copy)
    return ray.tune.Tuner(
        trainable,
        tune_config=ray.tune.TuneConfig(
            search_alg=algorithm,  # which knows what to maximise
            num_samples=search.trials,
            trial_dirname_creator=_trial_id,
            max_concurrent_trials=concurrent_trials(plan.config.scaling, search.max_concurrent),
            reuse_actors=True,
        ),
        run_config=ray.tune.RunConfig(
            name=_NAME,
            storage_path=str(folder.tune),
            callbacks=[progress],
            stop=Backstop(plan.stop, recipe(search.method, plan.config).train.steps),
            verbose=0,
            # A driver that dies is started again, and its trial goes on from its workers' own checkpoint.
            failure_config=ray.tune.FailureConfig(max_failures=1),
            checkpoint_config=ray.tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )


def _said_otherwise(record: logging.LogRecord) -> bool:
    """Keep back what Tune says of a driver that died, with a traceback: our progress says it in a line."""
    return not record.getMessage().startswith("Trial task failed")


@contextmanager
def _ending_in_order() -> Iterator[None]:
    """Let Tune save its state at the first Ctrl-C (or SIGTERM: a stopped job), then raise; the second raises at once.

    Raises:
        KeyboardInterrupt: one of them came.
    """
    caught: list[int] = []

    def first(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        say("ending in order: what is finished is being saved (once more ends at once)")
        for each in _SIGNALS:
            signal.signal(each, signal.default_int_handler)
        os.kill(os.getpid(), signal.SIGUSR1)  # to Tune it means what SIGINT does, without its words

    # Tune would take a SIGINT for itself and return as if nothing had happened.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [signal.signal(each, first) for each in _SIGNALS]
    try:
        yield
    finally:
        for each, handler in zip(_SIGNALS, before, strict=True):
            signal.signal(each, handler)
    if caught:
        raise KeyboardInterrupt


def _trial_id(trial: Any) -> str:
    """Name Tune's folder of a trial as ours is named."""
    return str(trial.trial_id)


def _forget_lost_trials(folder: RunFolder, known: set[str]) -> None:
    """Delete trials that began after Tune's last snapshot: others take their place, with ids of their own."""
    for path in folder.trials.glob("*"):
        if path.name not in known and not (path / "outcome.json").exists():
            shutil.rmtree(path)
