"""Search for the best mask of a model."""

from __future__ import annotations

import argparse

from mft_ray.cli.options import Command, add_output, add_run, read_run
from mft_ray.utils.json_types import JsonObject


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_output(parser)
    parser.add_argument(
        "--look-again",
        action="store_true",
        help="with --resume, where another trial has become the best since the verdict: judge that one too. The "
        "verdict then says that the test examples were looked at before",
    )


def _run(options: argparse.Namespace) -> JsonObject:
    config, resume = read_run(options)
    # Imported late, here and below: Ray and transformers take seconds, a mistyped option should be told at once.
    from mft_ray.report.summary import document
    from mft_ray.searches.pipeline import search

    return document(search(config, resume, options.look_again).root)


COMMAND = Command(
    summary="search for masks that make a fine-tuned model better, and judge the best one",
    description="Fine-tune a model fully (FFT), search for masks that make it better, and judge the best one on "
    "untouched test data. Leaves a run folder with leaderboard, verdict, mask, model and report.html.",
    examples="""
    mft-ray tune --config quickstart
    mft-ray tune --config tune_spaces/gsm8k_smollm2.yaml --set search.trials=20
    mft-ray tune --resume runs/quickstart-20260101-120000
    mft-ray tune --resume runs/quickstart-20260101-120000 --set search.trials=32
    mft-ray tune --config FILE --json
    ray job submit --working-dir . -- python -m mft_ray.tune --config FILE --set run.dir=/shared/runs/mine
    """,
    add_options=_add_options,
    run=_run,
)
