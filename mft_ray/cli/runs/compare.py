"""Compare methods on one model under one budget."""

from __future__ import annotations

import argparse

from mft_ray.cli.options import Command, add_output, add_run, read_run
from mft_ray.utils.json_types import JsonObject


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_run(parser)
    add_output(parser)


def _run(options: argparse.Namespace) -> JsonObject:
    config, resume = read_run(options)
    from mft_ray.comparison.run import compare
    from mft_ray.runs.records import Comparison

    folder = compare(config, resume)
    return {
        "schema": 1,
        "run": str(folder.root),
        "comparison": Comparison.load(folder.comparison).content(),
        "table": str(folder.comparison.with_suffix(".md")),
        "models": str(folder.methods),
    }


COMMAND = Command(
    summary="train every method on one model with one budget, in one table",
    description="Fine-tune a model fully (FFT), or take one that is; train every method of compare.methods on it with "
    "the same examples in the same order; score all on the same test examples and benchmark tasks; print one table of "
    "scores with intervals and of what each cost.",
    examples="""
    mft-ray compare --config quickstart
    mft-ray compare --config FILE --set compare.methods='[continued_fft, lora, mft]'
    mft-ray compare --config FILE --set evaluation.tasks='[gsm8k]' --set run.dir=runs/mine
    mft-ray compare --resume runs/mine
    """,
    add_options=_add_options,
    run=_run,
)
