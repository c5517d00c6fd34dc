"""What a run takes of disks, and of a node's memory beside what its devices hold."""

from __future__ import annotations

from collections.abc import Sequence

from mft_ray.config import METHODS, Config
from mft_ray.preflight.needs import Needs
from mft_ray.preflight.workload import Workload
from mft_ray.training.checkpoint import KEPT
from mft_ray.training.job import TrainJob
from mft_ray.training.step.optimizers import state_bytes, trained_bytes

_FLOAT = 4
_DTYPES = {"float32": 4, "bfloat16": 2}
_OF_TOKEN = 12  # bytes of an encoded token: itself, its label, and a part that is a prompt's again
_OF_SCORE = 4.0  # bytes of an example's score, for each mask that is kept
_PROCESS = 7e8  # bytes of a worker's process before it has loaded anything: imports of Python, Ray, torch, DeepSpeed


def host_of(jobs: Sequence[tuple[TrainJob, Needs]], gpu: bool, at_once: int) -> dict[str, float]:
    """Return the bytes of a node's memory at the most, where all workers are on one.

    Args:
        jobs: training runs, of which trials run several at a time.
        gpu: whether what is trained is held by GPUs.
        at_once: trials at a time.
    """
    totals = []
    for job, needs in jobs:
        workers = job.scaling.workers * (at_once if _is_trial(job, jobs) else 1)
        if not gpu:
            totals.append({"processes": _PROCESS * workers, "what workers hold": needs.peak * workers})
            continue
        # A model in its checkpoint's dtype is the mapped file, one copy for all.
        model = needs.weights * float(_DTYPES[job.dtype])
        held = {"processes": _PROCESS * workers, "model while it is loaded, or saved": model}
        if job.scaling.offload == "cpu":  # all shares of them
            trials = workers / job.scaling.workers
            kept = _FLOAT + state_bytes(job.train)
            held["states of optimizers, and copies of what they change"] = trials * kept * needs.trained
        totals.append(held)
    return max(totals, key=lambda total: sum(total.values()))


def disk_of(config: Config, jobs: Sequence[tuple[TrainJob, Needs]], data: Workload, at_once: int) -> dict[str, float]:
    """Return the bytes of disks at the most, by part: of the run folder, and last of each node's temporary disk.

    Args:
        config: configuration of the search.
        jobs: its training runs.
        data: what it trains on.
        at_once: trials at a time.
    """
    weights = jobs[0][1].weights
    model = float(weights * _DTYPES[config.model.dtype])
    trial, needs = next(pair for pair in jobs if _is_trial(pair[0], jobs))
    tuned = max((_checkpoints(job, its) for job, its in jobs if job.method == "fft"), default=0.0)
    kept = config.search.keep + at_once
    each = needs.trained / 8 if METHODS[config.search.method].masks else 4.0 * needs.trained
    found = {
        "encoded data": data.tokens * _OF_TOKEN,
        "start model": 4.0 * weights if config.model.path is None else 0.0,
        "models of FFT and continued FFT": model * (1 if config.fft.given else 2),
        # The new one beside the one that it replaces, and its weights in a file without a name.
        "a model while it is saved": 2 * model,
        "checkpoints": max(tuned, at_once * _checkpoints(trial, needs)),
        "masks or adapters": kept * each,
        "scores of validation examples": kept * data.validation * _OF_SCORE,
        "exported model": model if config.run.export_model else 0.0,
    }
    scaling = trial.scaling
    if trial.frozen and scaling.zero_stage < 3 and not scaling.gradient_checkpointing and not trial.train.dropout:
        states = needs.hidden * (2 if scaling.compute == "bfloat16" else _DTYPES[trial.dtype])
        known = (data.train + data.held_out + data.validation) * data.lengths.mean * states
        found["hidden states, on each node's temporary disk"] = min(known, scaling.prefix_cache_gb * 1e9)
    return {name: size for name, size in found.items() if size}


def _is_trial(job: TrainJob, jobs: Sequence[tuple[TrainJob, Needs]]) -> bool:
    """Say whether a job is the trial: it stands before continued FFT, which is last."""
    return job is jobs[-2][0]


def _checkpoints(job: TrainJob, needs: Needs) -> float:
    """Return the bytes of a run's checkpoints, one of them being written."""
    if job.train.steps == 0:
        return 0.0
    # What is trained, the optimizer's states, and at ZeRO-1 and 2 DeepSpeed's fp32 copy.
    copies = _FLOAT if job.scaling.zero_stage in (1, 2) else 0
    return (KEPT + 1) * (trained_bytes(job.train) + state_bytes(job.train) + copies) * needs.trained
