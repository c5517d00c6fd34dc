"""Tasks of lm-evaluation-harness: its prompts, few-shot examples and scores, so that results compare with others'."""

from __future__ import annotations

import contextlib
import glob
import io
import logging
import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mft_ray.errors import UserError
from mft_ray.evaluation.tasks.base import ExampleScores, Task, TaskOptions

_FEWSHOT_SEED = 1234  # the harness's own, which only its evaluator sets


class HarnessTask(Task):
    """One of the harness's tasks that generate text.

    Args:
        name: ours.
        options: what the user said.
        task: the harness's name.
        metric: the one that the task is known by, as the harness calls it, with its filter.
        shots: the task's own number.
        files: for local data: which file each split comes from.
        prepare: makes sure of what else the task's scores need.

    Raises:
        UserError: the harness is not installed, or the data cannot be loaded.
    """

    def __init__(
        self,
        name: str,
        options: TaskOptions,
        *,
        task: str,
        metric: str,
        shots: int,
        files: dict[str, str],
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self.name, self.metric = name, metric
        _prepare(name, prepare)
        self._task = _load(name, task, options, shots, files)
        self._task.set_fewshot_seed(_FEWSHOT_SEED)
        with _quiet():
            self._task.build_all_requests(
                limit=options.limit,
                apply_chat_template=options.chat is not None,
                fewshot_as_multiturn=options.chat is not None,
                chat_template=options.chat,
            )
        self._instances = self._task.instances
        self.prompts = [instance.args[0] for instance in self._instances]
        generation = self._instances[0].args[1] if self._instances else {}
        self.until = list(generation.get("until", []))
        self.max_new_tokens = int(generation.get("max_gen_toks", 256))

    def score(self, texts: Sequence[str]) -> list[ExampleScores]:
        """Score texts as the harness does. Metrics of a filter are called ``metric,filter``."""
        for instance, text in zip(self._instances, texts, strict=True):
            instance.resps, instance.filtered_resps = [text], {}
        with _quiet(), _seeded():
            self._task.apply_filters()
            return [self._score(instance) for instance in self._instances]

    def _score(self, instance: Any) -> ExampleScores:
        scores: ExampleScores = {}
        for name, response in instance.filtered_resps.items():
            for metric, value in self._task.process_results(instance.doc, [response]).items():
                label = metric if name == "none" else f"{metric},{name}"
                scores[label] = [float(each) for each in value] if isinstance(value, list) else float(value)
        return scores


@cache
def _manager() -> Any:
    """Return the harness's index of tasks, which takes seconds to make."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _prepare(name: str, prepare: Callable[[], None]) -> None:
    try:
        _manager()
        with _quiet():
            prepare()
    except ImportError:
        raise UserError(
            f"The task {name} comes from lm-evaluation-harness, which is not installed: pip install 'mft_ray[eval]'."
        ) from None


def _load(name: str, task: str, options: TaskOptions, shots: int, files: dict[str, str]) -> Any:
    overrides: dict[str, Any] = {"task": task, "num_fewshot": shots if options.shots is None else options.shots}
    if options.data is not None:
        found = _files(name, Path(options.data).expanduser(), files)
        splits = {split: glob.escape(file) for split, file in found.items()}  # a path of the user's is no pattern
        overrides |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": splits}}
    try:
        with _quiet():
            # A group, since only there the harness takes changes to a task of its own.
            return _manager().load([{"group": "mft_ray", "task": [overrides]}])["tasks"][task]
    except (OSError, ValueError, LookupError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"The data of task {name} cannot be loaded ({reason}). Give a local copy with --data {name}=PATH."
        ) from None


def _files(name: str, path: Path, files: dict[str, str]) -> dict[str, str]:
    """Return the file of each split: of a folder those with the usual names, else the one that was given."""
    if path.is_file():
        return {split: str(path) for split in files}
    found = {split: path / file for split, file in files.items()}
    if missing := [file.name for file in found.values() if not file.exists()]:
        raise UserError(
            f"The data of task {name} is to be a JSON lines file or a folder with {' and '.join(files.values())}; "
            f"{path} has no {' and no '.join(missing)}."
        )
    return {split: str(file) for split, file in found.items()}


@contextlib.contextmanager
def _seeded() -> Any:
    """With the same chance each time: what a prompt of IFEval leaves open, the harness's score draws at random."""
    before = random.getstate()
    random.seed(0)
    try:
        yield
    finally:
        random.setstate(before)


@contextlib.contextmanager
def _quiet() -> Any:
    """Without the harness's progress bars and remarks."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
