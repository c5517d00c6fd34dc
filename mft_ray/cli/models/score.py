"""Score a model by the metric and on the data of a configuration."""

from __future__ import annotations

import argparse

from mft_ray.cli.options import Command, add_config, read_config


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument("--model", metavar="MODEL", help="folder or hub id; without it, the config's model.path")
    parser.add_argument("--mask", metavar="FILE", help="mask file, or folder of a LoRA adapter, to put on the model")
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--out", metavar="FILE", help="JSON file for per-example scores")


def _run(options: argparse.Namespace) -> None:
    config = read_config(options)
    from mft_ray.runs.once.score import score_once

    score_once(config, options.model, options.mask, options.split, options.out)


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
