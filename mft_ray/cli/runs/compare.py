"""Compare methods on one model under one budget."""

from __future__ import annotations

import argparse

from mft_ray.cli.options import Command, add_run, read_run


def _run(options: argparse.Namespace) -> None:
    config, resume = read_run(options)
    from mft_ray.comparison.run import compare

    compare(config, resume)


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
    add_options=add_run,
    run=_run,
)
