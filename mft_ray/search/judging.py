"""The one look at the test examples: FFT, continued FFT and the winner, and what their scores show."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mft_ray.config import Config
from mft_ray.data.prepare import shared_sources
from mft_ray.search.baseline import Baseline, continued_fft, fft_workers
from mft_ray.search.discordant import Pair, keep_task_examples, keep_test_examples
from mft_ray.search.folder import RunFolder
from mft_ray.search.looks import kept_verdict, look, looks
from mft_ray.search.rivals import best_rival
from mft_ray.search.scoring import Subject, made, score, score_on_test
from mft_ray.search.seeds import over_seeds
from mft_ray.search.task_scores import score_on_tasks
from mft_ray.search.verdict import Evidence, Rules, compare, judge, warn
from mft_ray.training.job import write_json


def judge_winner(
    config: Config,
    folder: RunFolder,
    baseline: Baseline,
    start: str,
    rows: Sequence[dict[str, Any]],
    concurrent: int,
    again: bool = False,
) -> dict[str, Any]:
    """Score FFT, continued FFT and the winner on test, once, and write what that shows.

    Args:
        config: the resolved configuration.
        folder: of the run.
        baseline: the FFT model.
        start: folder or hub id of the model before fine-tuning, or the one that is fine-tuned already.
        rows: the leaderboard's, the winner's first.
        concurrent: models that may be evaluated on benchmark tasks at once.
        again: the test examples may be looked at although they were for another trial.

    Returns:
        The content of ``verdict.json``; what is there already is not judged again.

    Raises:
        UserError: the test examples were looked at for another trial, and that verdict is gone.
    """
    row = rows[0]
    if (kept := kept_verdict(folder, row["trial_id"], again)) is not None:
        return kept
    fft = Subject("fft", baseline.model)
    mft = made(folder.trial(row["trial_id"]), "mft", baseline.model, baseline.before)
    with fft_workers(config, folder) as group:
        rival = best_rival(group, config, folder, baseline)
        earlier = look(folder, row["trial_id"])
        continued = continued_fft(group, config, folder, baseline, row["tokens"])
        subjects = [continued, fft, mft, *([rival[1]] if rival else [])]
        values = score_on_test(group, subjects, config, folder)
        continued_validation = score(group, continued, "validation", config, folder)
        metric = config.evaluation.metric
        decisive = values.pop(metric)
        keep_test_examples(group, Pair(fft, mft, (decisive["fft"], decisive["mft"])), config, folder)
        seeds = over_seeds(group, config, folder, start, row, decisive)
    alone = Rules(config.evaluation.resamples, config.verdict.real_test)
    rules = replace(alone, sources=shared_sources(folder.data, "test"))
    on_tasks = _on_tasks(subjects, fft, mft, config, folder, concurrent, alone)
    others = config.evaluation.other_tasks
    extra = [_extra(name, by_name, rules) for name, by_name in values.items()]
    extra += [each for task, each in on_tasks if task not in others]
    evidence = Evidence(
        metric,
        decisive["mft"],
        decisive["fft"],
        decisive["continued"],
        rival=(rival[0], decisive[rival[1].name]) if rival else None,
        method=config.search.method,
        seeds=seeds,
        other_tasks=warn([each for task, each in on_tasks if task in others]),
        earlier_looks=len(earlier),
    )
    verdict = {
        **judge(evidence, rules),
        "trial_id": row["trial_id"],
        "selection": {"split": "validation", "n": len(continued_validation), "metric": metric, "trials": len(rows)},
        "looks": looks(folder),
        "extra": extra,
    }
    _complete_baseline(config, folder, decisive, continued_validation)
    write_json(folder.verdict, verdict)
    return verdict


def _on_tasks(
    subjects: Sequence[Subject],
    fft: Subject,
    mft: Subject,
    config: Config,
    folder: RunFolder,
    concurrent: int,
    rules: Rules,
) -> list[tuple[str, dict[str, Any]]]:
    """Score models on the benchmark tasks, keep the examples on which two differ, and return a row for each metric."""
    rows = []
    found = score_on_tasks(subjects, config, folder, config.scaling, concurrent) if config.tasks else {}
    for (task, name), by_name in found.items():
        keep_task_examples(Pair(fft, mft, (by_name["fft"], by_name["mft"])), task, name, folder)
        rows.append((task, _extra(f"{task}: {name}", by_name, rules)))
    return rows


def _extra(name: str, scores: Mapping[str, list[float]], rules: Rules) -> dict[str, Any]:
    continued = scores["continued"]
    return {**compare(name, scores["mft"], scores["fft"], rules), "continued": sum(continued) / len(continued)}


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
