"""Experiments from their configuration to table, raw rows and figure; every comparison can be resumed."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from mft_ray.baselines.fft import take_over
from mft_ray.comparison.run import check_rows, compare, one_group
from mft_ray.config import Config, parse_config
from mft_ray.config.stages import flatten, made_from
from mft_ray.data.examples import Example
from mft_ray.data.splits import load
from mft_ray.errors import UserError
from mft_ray.experiments.catalogue import EXPERIMENTS, Cell, Panel
from mft_ray.experiments.figures import draw
from mft_ray.experiments.landscape import surroundings
from mft_ray.experiments.results import collect
from mft_ray.experiments.tables import write_tables
from mft_ray.masking import depth
from mft_ray.runs.environment import keep_environment
from mft_ray.runs.folder import RunFolder, lock, open_folder
from mft_ray.runs.prepare import check_tasks, say_untracked, skeleton
from mft_ray.runs.repair.mend import mend_run
from mft_ray.runs.session import configuration
from mft_ray.runs.settled import check_settled
from mft_ray.runs.stored import check_nodes, held_in_store
from mft_ray.utils.console import log, log_warning
from mft_ray.utils.files import Damaged, read_json, write_json, write_text
from mft_ray.utils.formatting import duration
from mft_ray.utils.json_types import JsonObject
from mft_ray.workers.connection import connected
from mft_ray.workers.group import WorkerGroup, workers


def run_experiments(names: Sequence[str], config: Config | None, resume: str | None = None) -> Path:
    """Run experiments over seeds, or go on with interrupted ones. Comparisons on the same FFT model train it once.

    Args:
        names: names of the experiments; with ``resume`` those that were begun there.
        config: configuration of new experiments, or the changed one of those to go on with.
        resume: folder of the experiments to go on with, whose own configuration is used if no other is given.

    Returns:
        The folder: of each experiment ``NAME.md`` (table), ``NAME.png`` and ``NAME.svg`` (figure), ``NAME.json`` (raw
        rows), and the runs.

    Raises:
        UserError: something given cannot work, or is not what they were begun with; nothing was then trained.
    """
    with held_in_store(config, resume):
        return _in_folder(names, configuration(config, resume), resume)


def _in_folder(names: Sequence[str], config: Config, resume: str | None) -> Path:
    folder = open_folder(config, resume)
    _check_names(names, folder)
    check_settled(folder, config)
    cells = {name: list(_cells(name, config, folder)) for name in dict.fromkeys(names)}
    every = sorted((cell for mine in cells.values() for cell in mine), key=lambda cell: cell.seed)
    for cell in every:
        check_rows(cell.config)
    with connected():
        check_nodes(folder)
        held = lock(folder)
        try:
            settled = check_settled(folder, config)  # again, now that nobody else is at it
            for each in (folder, *(RunFolder(cell.folder) for cell in every if cell.folder.exists())):
                mend_run(each)
            say_untracked(config, "an experiment")
            settled.begin("experiments")
            config.save(folder.config)
            keep_environment(folder)
            write_json(folder.root / "experiments.json", {"names": list(cells)})
            _write_tasks(every, folder)
            for cell in every:
                if cell.seed == 0:  # the others' are the same, with other examples
                    check_tasks(cell.config)
            with _workers(every, config, folder) as group:
                _run(every, folder, group)
            for name, mine in cells.items():
                _report(name, mine, folder, surroundings(mine) if name == "flatness" else [])
            return folder.root
        except KeyboardInterrupt:
            begun = " ".join(cells)
            log_warning(f"interrupted; what was finished is kept: mft-ray experiment {begun} --resume {folder.named}")
            raise
        finally:
            held.release()


def _check_names(names: Sequence[str], folder: RunFolder) -> None:
    kept = folder.root / "experiments.json"
    try:
        begun: list[str] = read_json(kept, lambda content: list(content["names"])) if kept.exists() else list(names)
    except Damaged:  # told, and set aside, when the folder is held
        return
    if set(begun) != set(names):
        raise UserError(
            f"{folder.root} holds the experiments {', '.join(begun)}, not {', '.join(names)}: "
            f"mft-ray experiment {' '.join(begun)} --resume it."
        )


def _cells(name: str, config: Config, folder: RunFolder) -> Iterator[Cell]:
    """Yield all comparisons of an experiment."""
    panels = EXPERIMENTS[name].panels(config, depth(skeleton(config)))
    for seed in range(config.experiment.seeds):
        for panel in panels:
            at = folder.root / "runs" / name / f"seed-{seed}" / panel.name.replace(" ", "-")
            tasks = [str(_task_file(folder, seed, name)) for name in panel.judged_on]
            yield Cell(seed, panel, _configured(config, panel, seed, at, tasks), at)


def _task_file(folder: RunFolder, seed: int, panel: str) -> Path:
    return folder.root / "tasks" / f"seed-{seed}" / f"{panel}.jsonl"


def _write_tasks(cells: list[Cell], folder: RunFolder) -> None:
    """Write the test examples of panels that others are judged on, as tasks."""
    for cell in cells:
        path = _task_file(folder, cell.seed, cell.panel.name)
        if path.exists() or not any(cell.panel.name in other.panel.judged_on for other in cells):
            continue
        examples = load(cell.config.seeded().data, log)["test"]
        lines = [{"prompt": _prompt(example), "answer": example.answer} for example in examples]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def _prompt(example: Example) -> str:
    if len(example.messages) > 2:
        raise UserError(
            f"Example {example.id} has several turns, and a domain without evaluation.tasks is judged by prompts of "
            "one. Name its evaluation.tasks in experiment.domains."
        )
    return (example.messages[0]["content"] or "") + example.separator


def _configured(config: Config, panel: Panel, seed: int, at: Path, tasks: list[str]) -> Config:
    tree: JsonObject = config.model_dump()
    for section, changes in panel.changes.items():
        if section not in ("data", "evaluation"):
            raise UserError(
                f"A domain of experiment.domains may change data and evaluation; {panel.name} changes {section}."
            )
        tree[section] |= changes
    tree["evaluation"]["other_tasks"] = [*tree["evaluation"]["other_tasks"], *tasks]
    tree["run"] |= {"name": f"{panel.name}, seed {seed}", "dir": str(at), "seed": config.run.seed + seed}
    tree["compare"] |= {"methods": panel.rows}
    del tree["tracking"]  # said already
    return parse_config(tree, f"panel {panel.name}, over the rest of the configuration,")


def _workers(cells: list[Cell], config: Config, folder: RunFolder) -> AbstractContextManager[WorkerGroup | None]:
    """Have one worker group for all comparisons, if one is enough and no benchmark task needs its place meanwhile."""
    if one_group(config) and not any(cell.config.tasks for cell in cells):
        return workers(config.scaling, folder.work / "group")
    return nullcontext()


def _run(cells: list[Cell], folder: RunFolder, group: WorkerGroup | None) -> None:
    missing = [cell for cell in cells if not RunFolder(cell.folder).comparison.exists()]
    if len(missing) < len(cells):
        log(f"{len(cells) - len(missing)} of {len(cells)} comparisons are done already")
    began = time.monotonic()
    have = {_fft_of(cell.config): cell.folder for cell in cells if cell not in missing}
    for number, cell in enumerate(missing):
        left = (
            f", about {duration((time.monotonic() - began) / number * (len(missing) - number))} left" if number else ""
        )
        log(f"comparison {len(cells) - len(missing) + number + 1} of {len(cells)}: {cell.config.run.name}{left}")
        if RunFolder(cell.folder).config.exists():
            compare(cell.config, str(cell.folder), group)
        else:
            shutil.rmtree(cell.folder, ignore_errors=True)  # interrupted before there was anything to go on with
            if donor := have.get(_fft_of(cell.config)):
                take_over(RunFolder(donor), RunFolder(cell.folder))
                cell.config.save(RunFolder(cell.folder).config)
                compare(cell.config, str(cell.folder), group)
            else:
                compare(cell.config, group=group)
        have[_fft_of(cell.config)] = cell.folder


def _fft_of(config: Config) -> str:
    """Return all that the FFT model, the data and its scores follow from: where it is equal, so are they."""
    flat = flatten(config.model_dump(mode="json"))
    settings = made_from("data", flat) | made_from("baseline", flat)
    # How a run is called, and where it lies, makes no difference.
    kept = {path: value for path, value in settings.items() if path == "run.seed" or not path.startswith("run.")}
    return json.dumps(kept, sort_keys=True)


def _report(name: str, cells: list[Cell], folder: RunFolder, more: list[JsonObject]) -> None:
    results = collect(name, cells, more)
    write_json(folder.root / f"{name}.json", results.raw())
    table = write_tables(results, folder.root / f"{name}.md")
    figure = draw(results, folder.root / name)
    print(f"\n{table.read_text()}\ntable   {table}\nfigure  {figure}\nrows    {folder.root / name}.json", flush=True)
