"""Other methods on the same FFT model, trained so that the winner can be held against the best of them."""

from __future__ import annotations

from mft_ray.baselines.fft import job_on, trial_workers
from mft_ray.config import METHODS, Config, Method
from mft_ray.errors import RunFailed
from mft_ray.runs.fft_model import FftModel
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.scores import Candidate, candidate_from
from mft_ray.training.job import Outcome
from mft_ray.training.stopping import Patience
from mft_ray.utils.console import log
from mft_ray.workers.group import WorkerGroup
from mft_ray.workers.progress import JobProgress


def best_rival(
    group: WorkerGroup, config: Config, folder: RunFolder, baseline: FftModel
) -> tuple[tuple[str, Candidate] | None, dict[str, str]]:
    """Train the rivals that the configuration names and choose the best by validation.

    Args:
        group: FFT's; it trains them if trials ask for the same.
        config: ``verdict.rivals``; how each trains is `mft_ray.training.methods.recipes.recipe`.
        folder: of the run; a rival that was trained before is not trained again.
        baseline: the FFT model that all start from.

    Returns:
        The best one's method and what it made; None if no rival was asked for, or none could be trained. And why some
        could not, by method.
    """
    methods = [method for method in config.verdict.rivals if method != config.search.method]
    failed: dict[str, str] = {}
    if not methods:
        return None, failed
    scored: list[tuple[float, str]] = []
    with trial_workers(group, config, folder) as its:
        for method in methods:
            try:
                outcome = _train(method, its, config, folder, baseline)
            except RunFailed as error:
                log(f"rival {method} has failed: {error.told.rstrip('.')}. The verdict goes on without it.")
                failed[method] = str(error)
                continue
            if outcome.best_evaluation is None:
                failed[method] = "it ended before the mask reached its ratio"
            else:
                scored.append((outcome.best_evaluation.score, method))
    if not scored:
        return None, failed
    _, best = max(scored)
    return (best, candidate_from(folder.rivals / best, f"rival-{best}", baseline.model, baseline.pretrained)), failed


def _train(method: Method, group: WorkerGroup, config: Config, folder: RunFolder, baseline: FftModel) -> Outcome:
    out, scaling = folder.rivals / method, group.scaling
    job = job_on(baseline, method, config, start=baseline.model, data=folder.data, out=out, scaling=scaling)
    log(f"rival {method}: {METHODS[method]}")
    lines = JobProgress(f"rival {method}", config.evaluation.monitor, job.train.steps)
    return group.train(job, Patience(config.train.patience), lines)
