"""The one look at the test examples: FFT, continued FFT and the winner, and what their scores show."""

from __future__ import annotations

import json
from typing import Any

from mft_ray.config import Config
from mft_ray.search.baseline import Baseline, continued_fft, fft_workers
from mft_ray.search.folder import RunFolder
from mft_ray.search.scoring import Subject, made, score, score_on_test
from mft_ray.search.task_scores import score_on_tasks
from mft_ray.search.verdict import compare, judge
from mft_ray.training.job import write_json


def judge_winner(
    config: Config, folder: RunFolder, baseline: Baseline, row: dict[str, Any], concurrent: int
) -> dict[str, Any]:
    """Score FFT, continued FFT and the winner on test, once, and write what that shows.

    Args:
        config: the resolved configuration.
        folder: of the run.
        baseline: the FFT model.
        row: the winner's leaderboard row.
        concurrent: models that may be evaluated on benchmark tasks at once.

    Returns:
        The content of ``verdict.json``; what is there already is not judged again.
    """
    if folder.verdict.exists():
        kept: dict[str, Any] = json.loads(folder.verdict.read_text())
        return kept
    fft = Subject("fft", baseline.model)
    mft = made(folder.trial(row["trial_id"]), "mft", baseline.model, baseline.before)
    with fft_workers(config, folder) as group:
        continued = continued_fft(group, config, folder, baseline, row["tokens"])
        subjects = (continued, fft, mft)
        values = score_on_test(group, subjects, config, folder)
        continued_validation = score(group, continued, "validation", config, folder)
    metric, resamples = config.evaluation.metric, config.evaluation.resamples
    decisive = values.pop(metric)
    compared = (decisive["mft"], decisive["fft"], decisive["continued"])
    verdict = judge(metric, *compared, resamples, config.search.method)
    verdict["trial_id"] = row["trial_id"]
    if config.tasks:
        tasks = score_on_tasks(subjects, config, folder, config.scaling, concurrent)
        values |= {f"{task}: {name}": by_name for (task, name), by_name in tasks.items()}
    verdict["extra"] = [
        {
            **compare(name, by_name["mft"], by_name["fft"], resamples),
            "continued": sum(by_name["continued"]) / len(by_name["continued"]),
        }
        for name, by_name in values.items()
    ]
    _complete_baseline(config, folder, decisive, continued_validation)
    write_json(folder.verdict, verdict)
    return verdict


def _complete_baseline(
    config: Config, folder: RunFolder, named: dict[str, list[float]], continued_validation: list[float]
) -> None:
    record = json.loads(folder.baseline.read_text())
    outcome = json.loads((folder.continued / "outcome.json").read_text())
    best, last = outcome["history"][outcome["best"]], outcome["history"][-1]
    tests = {name: _mean(values) for name, values in named.items()}
    record["test"] = tests["fft"]
    record["continued"] = {
        "method": "fft",
        "metric": config.evaluation.metric,
        "validation": _mean(continued_validation),
        "test": tests["continued"],
        "best_step": best["step"],
        "steps": last["step"],
        "tokens": last["tokens"],
        "seconds": last["seconds"],
    }
    write_json(folder.baseline, record)


def _mean(values: list[float]) -> dict[str, Any]:
    return {"score": sum(values) / len(values), "n": len(values)}
