"""Score models and masks, on a config's data or on benchmark tasks: `python -m mft_ray.evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

from mft_ray import cli
from mft_ray.config import EvaluationConfig, parse_config
from mft_ray.errors import UserError

_EXAMPLES = """
python -m mft_ray.evaluate MODEL --tasks gsm8k,ifeval --out scores
python -m mft_ray.evaluate MODEL RUN/best/mask.safetensors --tasks gsm8k --data gsm8k=FOLDER --out scores
python -m mft_ray.evaluate MODEL --tasks mine.jsonl:scores.py --out scores
python -m mft_ray.evaluate --config tune_spaces/gsm8k_smollm2.yaml --model FOLDER --out scores.json
python -m mft_ray.evaluate --config FILE --model RUN/work/fft/best --mask RUN/best/mask.safetensors --split test
"""


def main() -> None:
    """Read the options and score."""
    arguments = cli.parser(
        "Score a model, and masks over it, on benchmark tasks (--tasks), keeping every prompt, text and score; or on "
        "the data and by the metric that a config names (--config).",
        _EXAMPLES,
    )
    cli.add_config(arguments, required=False)
    _add_tasks(arguments)
    arguments.add_argument("--model", metavar="MODEL", help="folder or hub id; without it, the config's model.path")
    arguments.add_argument("--mask", metavar="FILE", help="mask file to apply to the model")
    arguments.add_argument("--split", choices=("validation", "test"), default="validation")
    arguments.add_argument(
        "--out", metavar="PATH", help="with --tasks a folder for all results; else a JSON file for per-example scores"
    )
    options = arguments.parse_args()
    if (options.config is None) == (options.tasks is None):
        arguments.error("give either --config FILE, or MODEL and --tasks NAMES")
    if options.tasks is not None:
        _on_tasks(arguments, options)
        return
    config = cli.read_config(options)
    # Imported late: Ray and transformers take seconds, a mistyped option should be told at once.
    from mft_ray.runs.evaluate_once import evaluate_once

    evaluate_once(config, options.model, options.mask, options.split, options.out)


def _add_tasks(arguments: argparse.ArgumentParser) -> None:
    group = arguments.add_argument_group("benchmark tasks")
    group.add_argument("models", metavar="MODEL", nargs="*", help="a model, then masks or LoRA folders over it")
    group.add_argument(
        "--tasks", metavar="NAMES", help="such as gsm8k,ifeval; FILE.jsonl or FILE.jsonl:SCORES.py is yours"
    )
    group.add_argument("--data", metavar="TASK=PATH", action="append", default=[], help="a local copy of a task's data")
    group.add_argument("--limit", metavar="N", type=_count, help="the first N examples of each task")
    group.add_argument("--shots", metavar="N", type=int, help="examples before each prompt; without it, as is usual")
    group.add_argument(
        "--max-new-tokens", metavar="N", type=_count, help="generated for each; without it, the task's own number"
    )
    group.add_argument("--chat", action="store_true", help="prompt by the model's chat template")
    group.add_argument(
        "--template-option",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a variable of the chat template, such as enable_thinking=false",
    )
    group.add_argument(
        "--template-date", metavar="DAY", help="of a chat template that writes today's date, such as 2026-01-31"
    )
    group.add_argument(
        "--allow-code-execution", action="store_true", help="run programs that the model writes, in a jail (humaneval)"
    )
    group.add_argument("--batch-size", metavar="N", type=_count, default=16, help="prompts per forward (16)")
    group.add_argument(
        "--engine", choices=("transformers", "vllm"), default="transformers", help="what generates; vLLM needs a GPU"
    )
    group.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the weights; without it, the checkpoint's")
    group.add_argument("--pretrained", metavar="MODEL", help="model before fine-tuning, for a mask of the delta")


def _on_tasks(arguments: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if not options.models or options.out is None:
        arguments.error("--tasks needs a MODEL and --out FOLDER")
    names, data = options.tasks.split(","), dict(_pair(given) for given in options.data)
    if unknown := sorted(data.keys() - set(names)):
        raise UserError(f"--data names {', '.join(unknown)}, which --tasks does not.")
    evaluation = EvaluationConfig(
        tasks=names,
        task_data=data,
        task_limit=options.limit,
        task_max_new_tokens=options.max_new_tokens,
        task_batch_size=options.batch_size,
        chat=options.chat,
        allow_code_execution=options.allow_code_execution,
    )
    from mft_ray.data.text.template import with_fixed, writes_date
    from mft_ray.evaluation.benchmark import benchmark, load_tasks
    from mft_ray.evaluation.loaded_model import Backbone
    from mft_ray.evaluation.vllm.engine import VllmEngine
    from mft_ray.models.loading import load_tokenizer
    from mft_ray.utils.console import log

    if not options.chat and (options.template_option or options.template_date):
        raise UserError("--template-option and --template-date are of the chat template, which only --chat uses.")
    out = Path(options.out).expanduser()
    engine = VllmEngine(out) if options.engine == "vllm" else None
    path, *masks = options.models
    tokenizer = load_tokenizer(path)
    if options.chat:
        chosen = dict(_option(given) for given in options.template_option)
        template = {"template_options": chosen, "template_date": options.template_date}
        settings = parse_config({"model": {"path": path}, "data": template}).data
        if settings.template_date is None and writes_date(tokenizer):
            log("the chat template writes today's date; --template-date keeps one for other days")
        tokenizer = with_fixed(tokenizer, settings.template_options, settings.template_date)
    tasks = load_tasks(names, evaluation, tokenizer, options.shots)
    for task in tasks:
        if task.runs_code is not None:
            log(f"task {task.name} runs {task.runs_code}")
    backbone = Backbone(path, options.dtype, options.pretrained, engine, tokenizer)
    judged = [backbone.itself(), *(backbone.having(mask) for mask in masks)]
    for line in benchmark(backbone, judged, tasks, out, evaluation.task_batch_size):
        log(line)
    print(f"prompts, texts and scores: {options.out}")


def _count(given: str) -> int:
    if not given.isdecimal() or int(given) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {given!r}")
    return int(given)


def _option(given: str) -> tuple[str, Any]:
    name, equals, value = given.partition("=")
    if not equals or not name:
        raise UserError(f"--template-option {given!r} is not of the form NAME=VALUE, such as enable_thinking=false.")
    return name, yaml.safe_load(value)


def _pair(given: str) -> tuple[str, str]:
    name, equals, path = given.partition("=")
    if not equals or not name or not path:
        raise UserError(f"--data {given!r} is not of the form TASK=PATH, such as --data gsm8k=data/gsm8k.")
    return name, path


if __name__ == "__main__":
    cli.run(main)
