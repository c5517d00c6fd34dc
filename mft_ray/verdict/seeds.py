"""The winner and its baselines trained anew with other seeds: is the gain larger than what a seed changes?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean, stdev

from mft_ray.baselines.fft import continued_fft, fft_baseline, job_on
from mft_ray.config import Config
from mft_ray.config.params import apply
from mft_ray.errors import RunFailed, told
from mft_ray.evaluation.statistics import interval
from mft_ray.runs.candidates import Candidate, candidate_from
from mft_ray.runs.context import RunContext
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.records import SeedSpread, Spread, Trial
from mft_ray.training.stopping import Patience
from mft_ray.utils.console import log, log_warning


def over_seeds(
    run: RunContext, winner: Trial, scores: Mapping[str, Sequence[float]]
) -> tuple[SeedSpread | None, str | None]:
    """Train FFT, the winner and continued FFT with other seeds, and say how much the gain varies.

    The data, its splits and the model before fine-tuning stay; the order of the examples and the scores' start change.

    Args:
        run: run with FFT's workers; ``verdict.seeds`` is how many seeds there are, the search's own included.
        winner: row of the leaderboard.
        scores: on test, of ``fft``, ``mft`` and ``continued`` in the search itself. Without the last it is not trained
            with other seeds either.

    Returns:
        What `spread` does; None where one seed is all that was asked for, or all others failed. And why seeds have
        failed, or None.
    """
    config = run.config
    if config.verdict.seeds == 1:
        return None, None
    why: list[str] = []
    runs = [_means(scores)]
    for number in range(1, config.verdict.seeds):
        name = f"seed {number + 1} of {config.verdict.seeds}"
        log(f"{name}: FFT, the winner's settings{', and FFT continued' if 'continued' in scores else ''}")
        try:
            folder = RunFolder(run.folder.seeds / str(number), data=run.folder.data)
            folder.work.mkdir(parents=True, exist_ok=True)
            other = replace(run, config=_reseeded(config, number), folder=folder)
            runs.append(_run(other, winner, "continued" in scores))
        except RunFailed as error:
            reason = str(error.__cause__ or error).rstrip(".")
            log_warning(f"{name} has failed: {told(reason, error.traceback_file)}. The verdict goes on without it.")
            why.append(f"{name}: {reason}")
    return spread(runs) if len(runs) > 1 else None, "; ".join(why) or None


def spread(runs: Sequence[dict[str, float]]) -> SeedSpread:
    """Return how the gain varies over seeds.

    Args:
        runs: mean scores of ``fft``, ``mft`` and, if it could be run, ``continued``, for each seed, at least two.
    """
    fft = _spread([run["mft"] - run["fft"] for run in runs])
    both = all("continued" in run for run in runs)
    continued = _spread([run["mft"] - run["continued"] for run in runs]) if both else None
    within_noise = any(each.ci95[0] <= 0 for each in (fft, continued) if each)
    return SeedSpread(n=len(runs), runs=list(runs), delta=fft, delta_continued_fft=continued, within_noise=within_noise)


def _spread(deltas: Sequence[float]) -> Spread:
    return Spread(mean=fmean(deltas), sd=stdev(deltas), ci95=interval(deltas, binary=False))


def _reseeded(config: Config, number: int) -> Config:
    # Far from the seeds that run.seed and continued FFT make of the same number.
    train = config.train.model_copy(update={"seed": config.train.seed + 1000 * number})
    fft = config.fft.train.model_copy(update={"seed": config.fft.train.seed + 1000 * number})
    return config.model_copy(update={"train": train, "fft": config.fft.model_copy(update={"train": fft})})


def _run(run: RunContext, winner: Trial, both: bool) -> dict[str, float]:
    baseline, config, folder = fft_baseline(run), run.config, run.folder
    method, chosen, out = config.search.method, apply(config, winner.config), folder.trial("winner")
    with run.for_trials() as its:
        scaling = its.group.scaling
        job = job_on(baseline, method, chosen, start=run.start, data=folder.data, out=out, scaling=scaling)
        outcome = its.train(job, "the winner's settings", Patience(None))
    if outcome.best is None:
        raise RunFailed("it ended before the mask reached its ratio")
    candidates = {
        "fft": Candidate("fft", baseline.model),
        "mft": candidate_from(out, "mft", baseline.model, baseline.pretrained),
    }
    if both:
        candidates["continued"] = continued_fft(run, baseline, outcome.history[-1].tokens)
    return _means({name: run.score(each, "test") for name, each in candidates.items()})


def _means(scores: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: sum(scores[name]) / len(scores[name]) for name in ("fft", "mft", "continued") if name in scores}
