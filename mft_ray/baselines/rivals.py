"""Other methods on the same FFT model, trained so that the winner can be held against the best of them."""

from __future__ import annotations

from mft_ray.baselines.fft import job_on
from mft_ray.config import METHODS
from mft_ray.errors import RunFailed
from mft_ray.runs.candidates import Candidate, candidate_from
from mft_ray.runs.context import RunContext
from mft_ray.runs.fft_model import FftModel
from mft_ray.training.job import Outcome
from mft_ray.training.stopping import Patience
from mft_ray.utils.console import log, log_warning


def best_rival(run: RunContext, baseline: FftModel) -> tuple[tuple[str, Candidate] | None, dict[str, str]]:
    """Train the rivals that the configuration names and choose the best by validation.

    Args:
        run: run with FFT's workers; its configuration names the rivals in ``verdict.rivals``.
        baseline: FFT model that all start from.

    Returns:
        The best one's method and what it made; None if no rival was asked for, or none could be trained. And why some
        could not, by method.
    """
    config, folder = run.config, run.folder
    methods = [method for method in config.verdict.rivals if method != config.search.method]
    failed: dict[str, str] = {}
    if not methods:
        return None, failed
    scored: list[tuple[float, str]] = []
    with run.for_trials() as its:
        for method in methods:
            try:
                outcome = _train(method, its, baseline)
            except RunFailed as error:
                log_warning(f"rival {method} has failed: {error.told.rstrip('.')}. The verdict goes on without it.")
                failed[method] = str(error)
                continue
            if outcome.watched is None:
                failed[method] = "it ended before the mask reached its ratio"
            else:
                scored.append((outcome.watched, method))
    if not scored:
        return None, failed
    _, best = max(scored)
    return (best, candidate_from(folder.rivals / best, f"rival-{best}", baseline.model, baseline.pretrained)), failed


def _train(method: str, run: RunContext, baseline: FftModel) -> Outcome:
    config, folder, scaling = run.config, run.folder, run.group.scaling
    out = folder.rivals / method
    job = job_on(baseline, method, config, start=baseline.model, data=folder.data, out=out, scaling=scaling)
    log(f"rival {method}: {METHODS[method].description}")
    return run.train(job, f"rival {method}", Patience(config.train.patience))
