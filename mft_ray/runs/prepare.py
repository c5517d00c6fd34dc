"""Before anything costs time: check every input, then make the data and the start model ready."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pyarrow.compute as pc
import torch
from transformers import PreTrainedTokenizerBase as Tokenizer

from mft_ray.config import Config, DataConfig
from mft_ray.data import arithmetic
from mft_ray.data.mixture import locate_test, locate_training
from mft_ray.data.store import SPLITS, open_split, prepare
from mft_ray.data.text.template import TEMPLATES, chat_template, local_file, with_fixed, writes_date
from mft_ray.errors import UserError
from mft_ray.evaluation.benchmark import load_tasks
from mft_ray.evaluation.generation import room_for_prompts
from mft_ray.masking import select
from mft_ray.models.export import save_model
from mft_ray.models.loading import check_attention, check_model, check_path, load_skeleton, load_tokenizer, new_model
from mft_ray.models.positions import positions
from mft_ray.models.vocabulary import check_vocabulary, embedded
from mft_ray.runs.folder import RunFolder
from mft_ray.training.step.batches import check_batch_size
from mft_ray.training.step.optimizers import check_installed, check_stage
from mft_ray.training.step.unselected import check_unselected
from mft_ray.utils.console import log, log_warning

# Told the configuration and the structure of its model; refuses what cannot work.
Check = Callable[[Config, torch.nn.Module], object]


def check(config: Config, also: Check | None = None) -> None:
    """Refuse, within seconds and before anything is written, what cannot work.

    Args:
        config: the run's configuration.
        also: further checks, given the structure of the model.

    Raises:
        UserError: the first thing found, with what to do.
    """
    check_batch_size(config.train, config.scaling)
    for train, scaling in ((config.train, config.scaling), (config.fft.train, config.fft.scaling or config.scaling)):
        check_installed(train)
        check_stage(train, scaling)
    if not config.fft.given:
        check_batch_size(config.fft.train, config.fft.scaling or config.scaling)
    elif config.model.architecture is not None:
        raise UserError("fft.given says that model.path is already fine-tuned, but model.architecture is given.")
    if config.model.architecture is not None and config.data.task != "arithmetic":
        raise UserError(
            f"model.architecture makes a model without a tokenizer, which only the arithmetic task has; task "
            f"{config.data.task} needs model.path."
        )
    check_pretrained(config)
    check_attention(config.model.attention)
    if config.data.task != "arithmetic":
        locate_training(config.data), locate_test(config.data)
    if config.data.chat_template is not None:
        chat_template(config.data.chat_template)
    model = skeleton(config)
    within_positions(config, model)
    select(model, config.mask.layers, config.mask.target)
    select(model, config.lora.layers, config.lora.target)
    check_unselected(config.model.unselected_dtype, config.scaling, model)
    if also is not None:
        also(config, model)
    _check_checkpoint(config)


def _check_checkpoint(config: Config) -> None:
    """Look into weights and vocabulary, last because it reads every weight once."""
    if config.model.path is None:
        new_model(config.model.architecture or {}, len(tokenizer_of(config)), 0)  # computes, not only is
        return
    tokenizer_of(config)
    check_model(config.model.path)
    if config.model.pretrained is not None:
        check_model(config.model.pretrained)


def within_positions(config: Config, model: torch.nn.Module) -> DataConfig:
    """Return the data's settings with a length that the model has positions for.

    Args:
        config: its ``data.max_length`` is kept where it was given; by default it is the model's positions at most.
        model: or its structure.

    Raises:
        UserError: ``data.max_length`` was given and is beyond the model's positions.
    """
    given, default = config.data.max_length, DataConfig.model_fields["max_length"].default
    most = positions(model.config)
    if most is None or (given is not None and given <= most):
        return config.data
    if given != default:
        raise UserError(
            f"data.max_length is {given:,}, and the model has {most:,} positions: longer texts are nothing that it has "
            f"learned. Set data.max_length to {most} at the most, or leave it out."
        )
    return config.data.model_copy(update={"max_length": most})


def check_tasks(config: Config) -> None:
    """Refuse benchmark tasks that cannot be run, before hours are spent on what they are to judge.

    Raises:
        UserError: the first thing found.
    """
    if config.tasks:
        model = skeleton(config).config
        for task in load_tasks(config.tasks, config.evaluation, tokenizer_of(config)):
            if task.runs_code is not None:
                log(f"task {task.name} runs {task.runs_code}")
            room_for_prompts(model, task.max_new_tokens)


def say_untracked(config: Config, what: str) -> None:
    """Say which services that a configuration asks for will not hear of a run.

    Args:
        config: configuration of the run.
        what: the run, in a word or two.
    """
    if config.tracking.services:
        log_warning(f"{' and '.join(config.tracking.services)}: only a search (mft-ray tune) is tracked, {what} is not")


def check_pretrained(config: Config) -> None:
    """A delta is measured from the checkpoint before fine-tuning, which only the user knows if FFT is given."""
    if config.model.pretrained is not None:
        if not config.fft.given:
            raise UserError(
                "model.pretrained is the checkpoint before fine-tuning, for a model.path that is already fine-tuned: "
                "set fft.given too. When FFT is trained here, it is known."
            )
        check_path(config.model.pretrained, "model.pretrained")
    elif config.mask.removes == "delta" and config.fft.given:
        raise UserError(
            "mask.removes delta takes weights back to what they were before fine-tuning: give that checkpoint as "
            "model.pretrained."
        )


def with_absolute_paths(config: Config) -> Config:
    """Return a copy whose local paths are absolute, so that a run can be resumed from any folder."""

    def absolute(path: str | None) -> str | None:
        local = Path(path).expanduser() if path else None
        # Links are not followed: a file of a cache may lie elsewhere, under a name that says no format.
        return os.path.abspath(local) if local is not None and _exists(local) else path

    model = config.model.model_copy(
        update={"path": absolute(config.model.path), "pretrained": absolute(config.model.pretrained)}
    )
    template = config.data.chat_template
    file = local_file(template) if template and template not in TEMPLATES else None
    mixture = [part.model_copy(update={"path": absolute(part.path)}) for part in config.data.mixture]
    data = config.data.model_copy(
        update={
            "train": absolute(config.data.train),
            "test": absolute(config.data.test),
            "mixture": mixture,
            "chat_template": None if template is None else str(file.resolve()) if file else template,
        }
    )
    tasks = {name: absolute(path) or path for name, path in config.evaluation.task_data.items()}
    evaluation = config.evaluation.model_copy(update={"task_data": tasks})
    return config.model_copy(update={"model": model, "data": data, "evaluation": evaluation})


def with_fixed_date(config: Config, earlier: Config | None = None) -> Config:
    """Return a copy that says which day its chat template writes, where that writes today's.

    Args:
        config: configuration of a run.
        earlier: that of the same run when it began, whose day is kept.
    """
    if config.data.template_date is not None or config.data.task == "arithmetic":
        return config
    day = earlier.data.template_date if earlier is not None else None
    if day is None:
        try:
            tokenizer = load_tokenizer(config.model.path) if config.model.path else None
            if tokenizer is not None and config.data.chat_template is not None:
                tokenizer.chat_template = chat_template(config.data.chat_template)
        except UserError:  # told when everything is checked
            return config
        if tokenizer is None or not writes_date(tokenizer):
            return config
        day = date.today().isoformat()
    return config.model_copy(update={"data": config.data.model_copy(update={"template_date": day})})


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # too long a name
        return False


def make_ready(config: Config, folder: RunFolder) -> str:
    """Prepare data and start model, unless an earlier attempt did. Returns the start model's folder or hub id.

    Raises:
        UserError: the data cannot be used.
    """
    tokenizer = tokenizer_of(config)
    if not folder.data.exists():
        prepare_data(config, tokenizer, skeleton(config), folder)
    if config.model.path is not None:
        local = Path(config.model.path).expanduser()
        return str(local.resolve()) if local.is_dir() else config.model.path
    if not folder.start_model.exists():
        model = new_model(config.model.architecture or {}, len(tokenizer), config.fft.train.seed)
        # An architecture's own defaults are tokens of another tokenizer.
        for its in (model.config, model.generation_config):
            its.bos_token_id, its.eos_token_id, its.pad_token_id = (
                tokenizer.bos_token_id,
                tokenizer.eos_token_id,
                tokenizer.pad_token_id,
            )
        state = {name: parameter.detach() for name, parameter in model.named_parameters()}
        save_model(model, state, tokenizer, folder.start_model)
    return os.fspath(folder.start_model)


def prepare_data(config: Config, tokenizer: Tokenizer, model: torch.nn.Module, folder: RunFolder) -> None:
    """Encode the data for a model.

    Args:
        config: configuration of the run.
        tokenizer: the model's, see `tokenizer_of`.
        model: or its structure.
        folder: folder of the run, whose data is replaced.

    Raises:
        UserError: the data cannot be used, or not with this model.
    """
    prepare(within_positions(config, model), tokenizer, folder.data, log, folder.data_counts, log_warning)
    _check_rows(folder, tokenizer, model)


def _check_rows(folder: RunFolder, tokenizer: Tokenizer, model: torch.nn.Module) -> None:
    """Refuse rows with a token that the model has no embedding of; see `check_vocabulary`."""
    rows = embedded(model)
    for split in SPLITS:
        prepared = open_split(folder.data, split)
        for column in ("input_ids", "prompt_ids"):
            tokens = pc.list_flatten(prepared.data.column(column))
            if len(tokens) and (found := pc.max(tokens).as_py()) >= rows:
                shutil.rmtree(folder.data)
                token = tokenizer.convert_ids_to_tokens(found)
                raise UserError(
                    f"The {split} split has a text with {token!r} in it, the tokenizer's token {found}, and the model "
                    f"has {rows:,} embeddings. Take it out of the text."
                )


def in_steps(config: Config, folder: RunFolder) -> Config:
    """Return a copy in which epochs are steps, now that the data is ready: what runs are made of knows only steps."""
    train, fft = (
        train.in_steps(len(open_split(folder.data, train.examples))) if train.epochs is not None else train
        for train in (config.train, config.fft.train)
    )
    return config.model_copy(update={"fft": config.fft.model_copy(update={"train": fft}), "train": train})


def tokenizer_of(config: Config, path: str | None = None) -> Tokenizer:
    """Return the tokenizer of a model, or the arithmetic task's own for a model made from settings.

    It has the chat template of ``data.chat_template``, if that is given, with its options and its date.

    Raises:
        UserError: there is none, no such chat template, or it is not of this model.
    """
    own = path is None  # which `check` has looked at
    path = path or config.model.path
    if path is None:
        tokenizer = arithmetic.tokenizer()
    else:
        tokenizer = load_tokenizer(path)
        model = load_skeleton(path) if own else check_model(path)
        if spare := check_vocabulary(tokenizer, model, path):
            log_warning(
                f"the model has no embedding of {', '.join(spare)}: texts in which they are written will be refused"
            )
    if config.data.chat_template is not None:
        tokenizer.chat_template = chat_template(config.data.chat_template)
    return with_fixed(tokenizer, config.data.template_options, config.data.template_date)


def skeleton(config: Config, weights: bool = True) -> torch.nn.Module:
    """Return the model's structure without its weights.

    Args:
        config: ``model`` is used.
        weights: whether a folder must hold weights, so that the model can be trained.

    Raises:
        UserError: it cannot be loaded.
    """
    with torch.device("meta"):
        if config.model.path is None:
            made: torch.nn.Module = new_model(config.model.architecture or {}, len(tokenizer_of(config)), 0)
            return made
    found: torch.nn.Module = load_skeleton(config.model.path, weights)
    return found
