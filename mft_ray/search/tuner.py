"""The search itself: Ray Tune over trials, started or resumed."""

from __future__ import annotations

import shutil

import ray.tune

from mft_ray.search.capacity import concurrent_trials
from mft_ray.search.folder import RunFolder
from mft_ray.search.progress import TrialProgress
from mft_ray.search.space import build_space, points_to_evaluate
from mft_ray.search.study import METRIC, build_search
from mft_ray.search.trial import TrialPlan, run_trial

_NAME = "search"
# A driver waits for its workers. If it held CPUs, drivers could take what their workers need and wait for
# ever; Tune insists on a request that is not empty, so it asks for a megabyte.
_DRIVER = {"memory": 2**20}


def run_trials(plan: TrialPlan, folder: RunFolder, depth: int, progress: TrialProgress) -> None:
    """Run all trials of a search, or those that an interrupted one still owes.

    Args:
        plan: what all trials share.
        folder: of the run.
        depth: decoder layers of the backbone.
        progress: told of every trial.
    """
    search = plan.config.search
    trainable = ray.tune.with_resources(ray.tune.with_parameters(run_trial, plan=plan), _DRIVER)
    path = str(folder.tune / _NAME)
    if ray.tune.Tuner.can_restore(path):
        # Tune pickles its callbacks: the restored progress reads the same run folder.
        tuner = ray.tune.Tuner.restore(path, trainable, resume_unfinished=True, restart_errored=False)
        tuner.fit()
        return
    for leftover in (folder.trials, folder.tune):
        shutil.rmtree(leftover, ignore_errors=True)
    algorithm = build_search(
        folder.study,
        build_space(plan.config, depth),
        points_to_evaluate(plan.config, depth),
        search.startup_trials,
        search.seed,
    )
    ray.tune.Tuner(
        trainable,
        tune_config=ray.tune.TuneConfig(
            search_alg=algorithm,
            metric=METRIC,
            mode="max",
            num_samples=search.trials,
            max_concurrent_trials=concurrent_trials(plan.config.scaling, search.max_concurrent),
        ),
        run_config=ray.tune.RunConfig(
            name=_NAME, storage_path=str(folder.tune), callbacks=[progress], verbose=0
        ),
    ).fit()
