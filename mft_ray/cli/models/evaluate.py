"""Score models and masks on benchmark tasks."""

from __future__ import annotations

import argparse
from typing import Any

import yaml

from mft_ray.cli.options import Command, add_output, count
from mft_ray.config import EvaluationConfig
from mft_ray.errors import UserError
from mft_ray.utils.json_types import JsonObject


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models",
        metavar="MODEL",
        nargs="+",
        help="a model, then masks or LoRA adapters over it: files, folders or hub ids",
    )
    parser.add_argument(
        "--tasks",
        metavar="NAMES",
        required=True,
        help="such as gsm8k,ifeval; FILE.jsonl or FILE.jsonl:SCORES.py is yours",
    )
    parser.add_argument("--out", metavar="FOLDER", required=True, help="folder for all prompts, texts and scores")
    parser.add_argument(
        "--data", metavar="TASK=PATH", action="append", default=[], help="a local copy of a task's data"
    )
    parser.add_argument("--limit", metavar="N", type=count, help="the first N examples of each task")
    parser.add_argument("--shots", metavar="N", type=int, help="examples before each prompt; without it, as is usual")
    parser.add_argument(
        "--max-new-tokens", metavar="N", type=count, help="generated for each; without it, the task's own number"
    )
    parser.add_argument("--chat", action="store_true", help="prompt by the model's chat template")
    parser.add_argument(
        "--template-option",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a variable of the chat template, such as enable_thinking=false",
    )
    parser.add_argument(
        "--template-date", metavar="DAY", help="of a chat template that writes today's date, such as 2026-01-31"
    )
    parser.add_argument(
        "--allow-code-execution", action="store_true", help="run programs that the model writes, in a jail (humaneval)"
    )
    parser.add_argument("--batch-size", metavar="N", type=count, default=16, help="prompts per forward (16)")
    parser.add_argument(
        "--engine", choices=("transformers", "vllm"), default="transformers", help="what generates; vLLM needs a GPU"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the weights; without it, the checkpoint's")
    parser.add_argument("--pretrained", metavar="MODEL", help="model before fine-tuning, for a mask of the delta")
    add_output(parser)


def _run(options: argparse.Namespace) -> JsonObject:
    names, data = options.tasks.split(","), dict(_pair(given) for given in options.data)
    if unknown := sorted(data.keys() - set(names)):
        raise UserError(f"--data names {', '.join(unknown)}, which --tasks does not.")
    if not options.chat and (options.template_option or options.template_date):
        raise UserError("--template-option and --template-date are of the chat template, which only --chat uses.")
    settings = EvaluationConfig(
        tasks=names,
        task_data=data,
        task_limit=options.limit,
        task_max_new_tokens=options.max_new_tokens,
        task_batch_size=options.batch_size,
        chat=options.chat,
        allow_code_execution=options.allow_code_execution,
    )
    from mft_ray.evaluation.evaluate import evaluate_models

    found = evaluate_models(
        options.models,
        settings,
        options.out,
        shots=options.shots,
        template_options=dict(_option(given) for given in options.template_option),
        template_date=options.template_date,
        engine=options.engine,
        dtype=options.dtype,
        pretrained=options.pretrained,
    )
    if options.quiet:  # else they are the last lines of progress
        for task, models in found.items():
            for name, one in models.items():
                print(f"{task}, {name}: {one['metric']} {one['score']:.4f}")
    print(f"prompts, texts and scores: {options.out}")
    return found


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


COMMAND = Command(
    summary="score models and masks on benchmark tasks, such as gsm8k, ifeval or humaneval",
    description="Score a model, and masks or LoRA adapters over it, on benchmark tasks; every prompt, text and score "
    "is kept, and an interrupted run goes on. The metric and data of a configuration: mft-ray score.",
    examples="""
    mft-ray evaluate MODEL --tasks gsm8k,ifeval --out scores
    mft-ray evaluate MODEL RUN/best/mask.safetensors --tasks gsm8k --data gsm8k=FOLDER --out scores
    mft-ray evaluate MODEL --tasks mine.jsonl:scores.py --out scores
    """,
    add_options=_add_options,
    run=_run,
)
