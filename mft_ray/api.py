"""What Python programs and notebooks call: the commands of `mft-ray` as functions that return what they made.

A mistake raises `UserError`, whose text says what was given and what to do; a run that fails raises `RunFailed`. An
interruption (Ctrl-C, a notebook's stop button) raises `KeyboardInterrupt` once what is finished is saved.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mft_ray.config import METHODS, Config, load_config, parse_config
from mft_ray.config.parsing.yaml_text import Overrides, apply_overrides
from mft_ray.errors import UserError
from mft_ray.runs.reading import Run, read
from mft_ray.runs.records import Comparison, Row, ScoreTable, SplitScore
from mft_ray.utils.files import read_json
from mft_ray.utils.json_types import JsonObject

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mft_ray.training.job import Outcome

# A configuration as it is given: read already, a file, the name of one that comes with the package, or its tree.
GivenConfig = Config | str | os.PathLike[str] | Mapping[str, Any]


@dataclass(frozen=True)
class ComparisonRun:
    """A finished comparison.

    Attributes:
        folder: run folder; ``methods`` in it holds every method's model, mask or adapter.
        record: contents of ``comparison.json``.
    """

    folder: Path
    record: Comparison

    @property
    def rows(self) -> list[Row]:
        """How the training of each method went, FFT first."""
        return self.record.rows

    @property
    def scores(self) -> list[ScoreTable]:
        """Scores of all methods on the test examples and on each benchmark task, with intervals."""
        return self.record.scores


@dataclass(frozen=True)
class ExperimentRun:
    """Finished experiments.

    Attributes:
        folder: folder of the tables and figures.
        names: names of the experiments.
    """

    folder: Path
    names: tuple[str, ...]

    def table(self, name: str) -> str:
        """Return an experiment's table and findings as Markdown."""
        return (self.folder / f"{name}.md").read_text(encoding="utf-8")

    def rows(self, name: str) -> list[JsonObject]:
        """Return an experiment's raw rows: a seed, a panel and a method each."""
        return read_json(self.folder / f"{name}.json", lambda content: list(content["rows"]))


@dataclass(frozen=True)
class TrainingRun:
    """A finished training.

    Attributes:
        path: mask file, folder of the adapter, or folder of the model.
        outcome: every evaluation, the best one, why it ended, and what it cost.
    """

    path: Path
    outcome: Outcome


def search(
    config: GivenConfig | None = None,
    overrides: Overrides = (),
    *,
    resume: str | os.PathLike[str] | None = None,
    look_again: bool = False,
) -> Run:
    """Search for the best mask of a model and judge it, as ``mft-ray tune`` does.

    Args:
        config: configuration, its file, or its name; None with ``resume`` takes that run's own.
        overrides: settings to change, such as ``{"search.trials": 4}`` or ``["search.trials=4"]``.
        resume: run folder to go on with, or to add trials to, or its address.
        look_again: whether the test examples may be looked at for another trial than before.

    Returns:
        The run: ``.verdict``, ``.leaderboard``, ``.best`` and more.

    Raises:
        UserError: something given cannot work; nothing was then written.

    Example:
        >>> run = mft_ray.search(config, {"run.dir": "runs/first", "search.trials": 2})
        [...
        >>> run.verdict.beats_fft in (True, False)
        True
        >>> run.best.mask_path.name
        'mask.safetensors'
        >>> run.leaderboard[0].score >= run.leaderboard[-1].score
        True
    """
    given = _for_run(config, overrides, resume)
    from mft_ray.searches.pipeline import search as run_search

    return load_run(run_search(given, _path(resume), look_again).root)


def load_run(folder: str | os.PathLike[str]) -> Run:
    """Read the run folder of a search, finished or not.

    Args:
        folder: run folder, or its address in an object store, from which it is brought here.

    Raises:
        UserError: it is not the folder of a search that has got as far as its baseline.

    Example:
        >>> run = mft_ray.load_run("runs/first")
        >>> run.verdict.sentence
        '...'
        >>> [trial.config["ratio"] for trial in run.leaderboard]
        [...]
    """
    from mft_ray.runs.stored import fetched

    return read(fetched(folder, "folder"))


def compare(
    config: GivenConfig | None = None,
    overrides: Overrides = (),
    *,
    resume: str | os.PathLike[str] | None = None,
) -> ComparisonRun:
    """Train every method of ``compare.methods`` on one model with one budget, as ``mft-ray compare`` does.

    Args:
        config: configuration, its file, or its name; None with ``resume`` takes that run's own.
        overrides: settings to change.
        resume: run folder to go on with.

    Raises:
        UserError: something given cannot work; nothing was then written.

    Example:
        >>> compared = mft_ray.compare(config, {"run.dir": "runs/compared", "compare.methods": ["l1_mask"]})
        [...
        >>> [row.name for row in compared.rows]
        ['fft', 'l1_mask']
        >>> compared.scores[0].rows["l1_mask"].delta_ci95
        (...)
    """
    given = _for_run(config, overrides, resume)
    from mft_ray.comparison.run import compare as run_comparison

    folder = run_comparison(given, _path(resume))
    return ComparisonRun(folder.root, Comparison.load(folder.comparison))


def experiment(
    names: str | Sequence[str],
    config: GivenConfig | None = None,
    overrides: Overrides = (),
    *,
    resume: str | os.PathLike[str] | None = None,
) -> ExperimentRun:
    """Repeat experiments of the paper over seeds, as ``mft-ray experiment`` does.

    Args:
        names: name of an experiment, or several, such as ``["ratio", "layers"]``.
        config: configuration, its file, or its name; None with ``resume`` takes that run's own.
        overrides: settings to change.
        resume: folder to go on with.

    Raises:
        UserError: something given cannot work; nothing was then trained.

    Example:
        >>> small = {"run.dir": "runs/ratio", "experiment.seeds": 1, "experiment.ratios": [0.1]}
        >>> found = mft_ray.experiment("ratio", config, small)
        [...
        >>> {row["method"] for row in found.rows("ratio")} >= {"fft", "mft"}
        True
    """
    given = _for_run(config, overrides, resume)
    from mft_ray.experiments.catalogue import EXPERIMENTS
    from mft_ray.experiments.run import run_experiments

    chosen = (names,) if isinstance(names, str) else tuple(names)
    if unknown := [name for name in chosen if name not in EXPERIMENTS]:
        raise UserError(f"There is no experiment {', '.join(unknown)}. There are {', '.join(EXPERIMENTS)}.")
    return ExperimentRun(run_experiments(chosen, given, _path(resume)), chosen)


def train(method: str, config: GivenConfig, overrides: Overrides = (), *, out: str | os.PathLike[str]) -> TrainingRun:
    """Train once by one method, as ``mft-ray train`` does.

    Args:
        method: name of a method, such as ``fft``, ``lora`` or ``mft``.
        config: configuration, its file, or its name.
        overrides: settings to change.
        out: folder for the result; an interrupted training goes on there.

    Raises:
        UserError: something given cannot work, or the folder holds something else.

    Example:
        >>> trained = mft_ray.train("fft", config, out="runs/fft")
        [...
        >>> trained.path.name, trained.outcome.best_evaluation.step > 0
        ('best', True)
    """
    from mft_ray.runs.once.train import train_once

    if method not in METHODS:
        raise UserError(f"There is no method {method}. There are {', '.join(METHODS)}.")
    path, outcome = train_once(method, _config(config, overrides), os.fspath(out))
    return TrainingRun(path, outcome)


def evaluate(
    models: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    tasks: str | Sequence[str],
    *,
    out: str | os.PathLike[str],
    data: Mapping[str, str | os.PathLike[str]] | None = None,
    limit: int | None = None,
    shots: int | None = None,
    max_new_tokens: int | None = None,
    chat: bool = False,
    allow_code_execution: bool = False,
    batch_size: int = 16,
    engine: str = "transformers",
    dtype: str | None = None,
    pretrained: str | None = None,
) -> JsonObject:
    """Score a model, and masks or adapters over it, on benchmark tasks, as ``mft-ray evaluate`` does.

    Args:
        models: folder or hub id of a model, or a list of one and mask files, adapter folders or hub ids over it.
        tasks: names of benchmark tasks, or files of your own.
        out: folder for prompts, texts and scores; what is there already is not asked again.
        data: local copies of the tasks' data by task.
        limit: number of examples of each task, the first ones; None takes all.
        shots: number of examples before each prompt; None takes the task's own.
        max_new_tokens: largest number of new tokens; None takes the task's own.
        chat: whether prompts are written by the model's chat template.
        allow_code_execution: whether programs that the model writes may be run, in a jail.
        batch_size: number of prompts in a forward pass.
        engine: ``transformers`` or ``vllm``.
        dtype: dtype of the weights; None takes the checkpoint's.
        pretrained: folder or hub id of the model before fine-tuning, for a mask of the delta.

    Returns:
        By task and model: metric, score, standard error, number of examples.

    Raises:
        UserError: something given cannot work.

    Example:
        >>> models = [run.backbone, run.best.mask_path]
        >>> found = mft_ray.evaluate(models, "capitals.jsonl", out="runs/scores", max_new_tokens=4)
        [...
        >>> [scores["n"] for scores in found["capitals.jsonl"].values()]
        [2, 2]
    """
    from mft_ray.evaluation.evaluate import evaluate_models

    given = [models] if isinstance(models, str | os.PathLike) else list(models)
    if not given:
        raise UserError("evaluate has no model. Give a folder or hub id, then masks or adapters over it.")
    settings = parse_config(
        {
            "model": {"path": os.fspath(given[0])},
            "evaluation": {
                "tasks": [tasks] if isinstance(tasks, str) else list(tasks),
                "task_data": {name: os.fspath(path) for name, path in (data or {}).items()},
                "task_limit": limit,
                "task_max_new_tokens": max_new_tokens,
                "task_batch_size": batch_size,
                "chat": chat,
                "allow_code_execution": allow_code_execution,
            },
        },
        "evaluate",
    ).evaluation
    return evaluate_models(
        [os.fspath(each) for each in given],
        settings,
        os.fspath(out),
        shots=shots,
        engine=engine,
        dtype=dtype,
        pretrained=pretrained,
    )


def score(
    config: GivenConfig,
    overrides: Overrides = (),
    *,
    model: str | os.PathLike[str] | None = None,
    mask: str | os.PathLike[str] | None = None,
    split: str = "validation",
) -> SplitScore:
    """Score a model on the data and by the metric of a configuration, as ``mft-ray score`` does.

    Args:
        config: configuration, its file, or its name.
        overrides: settings to change.
        model: folder or hub id; None takes ``model.path``.
        mask: mask file, adapter folder or hub id to put on it.
        split: ``validation`` or ``test``.

    Returns:
        Mean, number of examples and standard error.

    Raises:
        UserError: something given cannot work.

    Example:
        >>> mft_ray.score(config, model=run.backbone, mask=run.best.mask_path, split="test").n
        [...
        50
    """
    from mft_ray.runs.once.score import score_once

    if split not in ("validation", "test"):
        raise UserError(f"split is {split!r}. Give validation or test.")
    return score_once(_config(config, overrides), _path(model), _path(mask), split, None)


def export(
    backbone: str | os.PathLike[str],
    artifact: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    pretrained: str | None = None,
) -> Path:
    """Write an ordinary Hugging Face model of a mask or an adapter, as ``mft-ray export`` does.

    Args:
        backbone: folder or hub id of the model that it was learned on.
        artifact: mask file, adapter folder, or hub id of either, such as ``owner/name`` or ``owner/name@revision``.
        out: new or empty folder.
        pretrained: folder or hub id of the model before fine-tuning, for a mask of the delta.

    Returns:
        Folder of the model.

    Raises:
        UserError: the artifact belongs to another backbone, or the folder is not empty.

    Example:
        >>> mft_ray.export(run.backbone, run.best.mask_path, "my-model").name
        'my-model'
    """
    from mft_ray.models.artifacts import export as write

    folder = Path(out).expanduser()
    write(os.fspath(backbone), os.fspath(artifact), folder, pretrained)
    return folder


def push(
    run: str | os.PathLike[str],
    repo: str,
    *,
    model: bool = False,
    trial: str | None = None,
    backbone: str | None = None,
    private: bool = False,
    dry_run: str | os.PathLike[str] | None = None,
) -> str:
    """Publish what a search has found on the Hugging Face hub, as ``mft-ray push`` does.

    Args:
        run: run folder, or its address.
        repo: id of the repository, ``owner/name``; it is made if it is not there.
        model: whether the whole model is published, with the mask in its weights, instead of the mask.
        trial: id of a trial, or its first letters; None takes the one that was judged.
        backbone: id of a repository for the FFT model, which a mask needs; None leaves that where it is.
        private: whether a new repository can be read by its owner alone.
        dry_run: new or empty folder to write to in place of the hub.

    Returns:
        Address of the repository, or the folder.

    Raises:
        UserError: there is nothing to publish so, or the hub refuses it.

    Example:
        >>> mft_ray.push(run.folder, "me/my-mask", dry_run="look")
        [...
        '...look'

        What was pushed is loaded by ``mft_ray.load_masked("me/my-fft-model", "me/my-mask")``.
    """
    from mft_ray.publishing.push import push as publish
    from mft_ray.runs.stored import fetched

    return publish(
        fetched(run, "run"),
        repo,
        kind="model" if model else None,
        trial_id=trial,
        backbone=backbone,
        private=private,
        dry_run=None if dry_run is None else Path(dry_run),
    )


def load_masked(
    backbone: str | os.PathLike[str],
    artifact: str | os.PathLike[str],
    *,
    dtype: str | None = None,
    pretrained: str | None = None,
) -> PreTrainedModel:
    """Load a model with a mask or an adapter on it.

    Args:
        backbone: folder or hub id of the model that it was learned on.
        artifact: mask file, adapter folder, or hub id of either, such as ``owner/name`` or ``owner/name@revision``.
        dtype: dtype of the model; None keeps the checkpoint's.
        pretrained: folder or hub id of the model before fine-tuning, for a mask of the delta.

    Raises:
        UserError: they do not belong together.

    Example:
        >>> model = mft_ray.load_masked(run.backbone, run.best.mask_path)
        >>> model.config.model_type
        'llama'
    """
    from mft_ray.models.artifacts import load_with

    return load_with(os.fspath(backbone), os.fspath(artifact), dtype, pretrained=pretrained)


def _for_run(config: GivenConfig | None, overrides: Overrides, resume: str | os.PathLike[str] | None) -> Config | None:
    """Return the configuration of a new run, or the changed one of a run to go on with; None if it is not changed."""
    if (config is None) == (resume is None):
        raise UserError("Give either config for a new run or resume for an interrupted one.")
    if resume is None:
        assert config is not None
        return _config(config, overrides)
    if not overrides:
        return None
    from mft_ray.runs.stored import fetched

    return _config(fetched(resume, "resume") / "config.yaml", overrides)


def _config(config: GivenConfig, overrides: Overrides) -> Config:
    if isinstance(config, str | os.PathLike):
        return load_config(config, overrides)
    tree = config.model_dump(mode="json") if isinstance(config, Config) else copy.deepcopy(dict(config))
    apply_overrides(tree, overrides)
    return parse_config(tree)


def _path(given: str | os.PathLike[str] | None) -> str | None:
    return None if given is None else os.fspath(given)
