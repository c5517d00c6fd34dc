"""Score a model by the metric and on the data of a configuration."""

from __future__ import annotations

import argparse

from mft_ray.cli.options import Command, add_config, add_output, read_config
from mft_ray.utils.json_types import JsonObject


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--model", metavar="MODEL", help="folder or hub id; without it, the config's model.path")
    parser.add_argument("--mask", metavar="FILE", help="mask file, folder of a LoRA adapter, or hub id of either")
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--out", metavar="FILE", help="JSON file for per-example scores")
    add_output(parser)


def _run(options: argparse.Namespace) -> JsonObject:
    config = read_config(options)
    from mft_ray.runs.once.score import score_once

    found = score_once(config, options.model, options.mask, options.split, options.out)
    asked = {"metric": config.evaluation.metric, "split": options.split, "model": options.model or config.model.path}
    return {"schema": 1, **asked, "mask": options.mask, **found.content()}


COMMAND = Command(
    summary="score a model on the data and by the metric of a configuration",
    description="Score a model, or a mask over it, on the validation or test examples and by the metric that a "
    "configuration names. Benchmark tasks: mft-ray evaluate.",
    examples="""
    mft-ray score --config tune_spaces/gsm8k_smollm2.yaml --model FOLDER --out scores.json
    mft-ray score --config FILE --model RUN/work/fft/best --mask RUN/best/mask.safetensors --split test
    """,
    add_options=_add_options,
    run=_run,
)
