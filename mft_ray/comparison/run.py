"""All methods on one backbone, under one budget, in one table: `mft-ray compare`."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Queue

from mft_ray.baselines.fft import fft_baseline, job_on
from mft_ray.comparison.table import show, write_table
from mft_ray.config import METHODS, Config, parse_config
from mft_ray.data.store import shared_sources
from mft_ray.errors import RunFailed, UserError
from mft_ray.evaluation.statistics import holm, interval, paired, right_or_wrong
from mft_ray.runs import records
from mft_ray.runs.candidates import Candidate, candidate_from
from mft_ray.runs.context import RunContext, at_work
from mft_ray.runs.fft_model import FftModel
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.prepare import check, in_steps, say_untracked, with_absolute_paths
from mft_ray.runs.records import Comparison, Row, RowScore, ScoreTable
from mft_ray.runs.session import Session, session
from mft_ray.runs.task_scores import score_on_tasks
from mft_ray.training.job import Outcome, StopReason
from mft_ray.training.stopping import Patience
from mft_ray.utils.console import log, log_warning
from mft_ray.utils.json_types import JsonObject
from mft_ray.workers.group import WorkerGroup, workers

FFT = "fft"


@dataclass(frozen=True)
class Entry:
    """A row of the comparison.

    Attributes:
        name: name of the row.
        method: one of `mft_ray.config.METHODS`.
        config: with what the row changes.
    """

    name: str
    method: str
    config: Config


def entries(config: Config) -> list[Entry]:
    """Return the rows that a configuration asks for, but for FFT itself.

    Raises:
        UserError: a row changes what there is not, or to what is not allowed.
    """
    rows = []
    for name, changes in config.compare.methods.items():
        if name == FFT:
            continue
        tree = config.model_dump()
        for section, settings in changes.items():
            if section != "method":
                _merge(tree[section], settings)
        where = f"compare.methods.{name}, over the rest of the configuration,"
        rows.append(Entry(name, changes.get("method", name), parse_config(tree, where)))
    return rows


def _merge(tree: JsonObject, changes: JsonObject) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _merge(tree[key], value)
        else:
            tree[key] = value


def compare(config: Config | None, resume: str | None = None, group: WorkerGroup | None = None) -> RunFolder:
    """Train every method on one FFT model and score all on the same examples, or go on with an interrupted run.

    Args:
        config: configuration of a new comparison, or the changed one of a comparison to go on with.
        resume: folder of the comparison to go on with, whose own configuration is used if no other is given.
        group: does it all, one after the other; None has workers as the configuration asks.

    Raises:
        UserError: something given cannot work, or is not what the run was begun with; nothing was then written.
    """
    if config is not None:
        check_rows(config)
    with session(config, resume) as run:
        say_untracked(run.config, "a comparison")
        rows = [replace(row, config=in_steps(row.config, run.folder)) for row in entries(run.config)]
        _run(replace(run, config=in_steps(run.config, run.folder)), rows, group)
    return run.folder


def check_rows(config: Config) -> None:
    """Refuse a comparison one of whose rows cannot work.

    Raises:
        UserError: the first thing found, with what to do.
    """
    for row in entries(with_absolute_paths(config)):
        check(row.config)
        if row.method == FFT and row.config.fft.given:
            raise UserError(
                f"compare.methods.{row.name} trains from the model before fine-tuning, and fft.given says that "
                "model.path is fine-tuned already. Use continued_fft, or leave fft.given out."
            )


def one_group(config: Config) -> bool:
    """Say whether the same workers can do all of a comparison."""
    return config.compare.max_concurrent == 1 and config.fft.scaling in (None, config.scaling)


def _run(run: Session, rows: Sequence[Entry], given: WorkerGroup | None) -> None:
    config, folder = run.config, run.folder
    log(f"run folder {folder.root}")
    shared = RunContext(config, folder, run.start, given) if given else None
    with nullcontext(shared) if shared or not one_group(config) else at_work(config, folder, run.start) as context:
        log("1/4 FFT, which all others start from")
        run.settled.begin("baseline")
        with nullcontext(context) if context else at_work(config, folder, run.start) as its:
            baseline = fft_baseline(its)
        log(f"2/4 {len(rows)} methods on it: {', '.join(row.name for row in rows)}")
        run.settled.begin("methods")
        outcomes = _trained(rows, run, baseline, context.group if context else None)
        log("3/4 scores on the test examples")
        run.settled.begin("scores")
        candidates = [
            Candidate(FFT, baseline.model),
            *(
                candidate_from(_out(folder, row.name), row.name, baseline.model, baseline.pretrained)
                for row in rows
                if isinstance(outcomes[row.name], Outcome)
            ),
        ]
        with nullcontext(context) if context else at_work(config, folder, run.start) as its:
            found = its.score_on_test(candidates)
    scores = {("test", metric): values for metric, values in found.items()}
    if config.tasks:
        log(f"4/4 benchmark tasks: {', '.join(config.tasks)}")
        scores |= score_on_tasks(run, candidates)
    sources = {"test": shared_sources(folder.data, "test")}  # of tasks nothing is known
    Comparison(
        backbone=baseline.model,
        validation_metric=config.evaluation.monitor,
        rows=[_fft_row(folder), *(_row(row.name, row.method, outcomes[row.name]) for row in rows)],
        scores=[_table(name, metric, values, config, sources.get(name)) for (name, metric), values in scores.items()],
    ).save(folder.comparison)
    table = write_table(folder.comparison)
    show(folder.comparison)
    print(f"\ntable   {table}\nmodels  {folder.methods}", flush=True)


def _trained(
    rows: Sequence[Entry], run: Session, baseline: FftModel, group: WorkerGroup | None
) -> dict[str, Outcome | str]:
    """Train every row, on a group or on as many as may work at once; of one that fails return the reason."""
    if group is not None:
        return {row.name: _train(row, group, run, baseline) for row in rows}
    at_once = min(run.config.compare.max_concurrent, run.concurrent)
    # Groups end before the pool does: what is at work then breaks off.
    with ThreadPoolExecutor(at_once) as pool, ExitStack() as stack:
        groups: Queue[WorkerGroup] = Queue()
        for number in range(min(at_once, len(rows))):
            storage = run.folder.work / "groups" / f"compare-{number}"
            groups.put(stack.enter_context(workers(run.config.scaling, storage)))

        def train(row: Entry) -> Outcome | str:
            group = groups.get()
            try:
                return _train(row, group, run, baseline)
            finally:
                groups.put(group)

        waiting = [pool.submit(train, row) for row in rows]
        try:
            return {row.name: future.result() for row, future in zip(rows, waiting, strict=True)}
        finally:
            for future in waiting:
                future.cancel()


def _train(row: Entry, group: WorkerGroup, run: Session, baseline: FftModel) -> Outcome | str:
    folder, scaling = run.folder, run.config.scaling
    out = _out(folder, row.name)
    job = job_on(baseline, row.method, row.config, start=run.start, data=folder.data, out=out, scaling=scaling)
    log(f"{row.name}: {METHODS[row.method].description}")
    patience = row.config.fft.train.patience if row.method == FFT else row.config.train.patience
    try:
        outcome = RunContext(row.config, folder, run.start, group).train(job, row.name, Patience(patience))
    except RunFailed as error:
        log_warning(f"{row.name} has failed: {error.told}. The others go on.")
        return str(error)
    return outcome if outcome.best is not None else "it ended before the mask reached its ratio; raise train.steps"


def _out(folder: RunFolder, name: str) -> Path:
    return folder.methods / name


def _table(
    name: str, metric: str, values: dict[str, list[float]], config: Config, sources: list[str] | None
) -> ScoreTable:
    """Return every row's score with its interval, and its difference to FFT on the same examples."""
    binary = right_or_wrong(*values.values())
    sources = sources and sources[: len(values[FFT])]
    rows: dict[str, RowScore] = {}
    for row, scores in values.items():
        against = paired(scores, values[FFT], binary=binary, resamples=config.evaluation.resamples, sources=sources)
        rows[row] = RowScore(
            score=against.candidate,
            ci95=interval(scores, binary=binary),
            delta_fft=against.delta,
            delta_ci95=against.ci95,
            p_value=None if row == FFT else against.p_value,
        )
    tested = {row: found.p_value for row, found in rows.items() if found.p_value is not None}
    for row, p in zip(tested, holm(list(tested.values())), strict=True):
        rows[row].p_holm = p
    return ScoreTable(on=name, metric=metric, n=len(values[FFT]), rows=rows)


def _row(name: str, method: str, outcome: Outcome | str) -> Row:
    if isinstance(outcome, str):
        return Row(name=name, method=method, stopped_reason=StopReason.FAILED, error=outcome)
    best, last = outcome.best_evaluation, outcome.history[-1]
    return Row(
        name=name,
        method=method,
        validation=outcome.watched,
        best_step=best.step if best else None,
        steps=last.step,
        stopped_reason=outcome.stopped_reason,
        cost=outcome.cost,
    )


def _fft_row(folder: RunFolder) -> Row:
    path = folder.fft / "outcome.json"
    if path.exists():
        return _row(FFT, FFT, Outcome.load(path))
    record = records.Baseline.load(folder.baseline)
    validation = (record.watched or record).validation
    return Row(name=FFT, method=FFT, validation=validation.score, stopped_reason=StopReason.GIVEN)
