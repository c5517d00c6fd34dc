"""Have another trial judged than the best on validation."""

from __future__ import annotations

import argparse

from mft_ray.cli.options import Command, add_output
from mft_ray.utils.json_types import JsonObject


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", help="run folder of a search that has ended, or its address")
    parser.add_argument("trial", metavar="ID", help="the trial's id on the leaderboard, or its first letters")
    add_output(parser)


def _run(options: argparse.Namespace) -> JsonObject:
    from mft_ray.runs.picked import picked
    from mft_ray.runs.stored import fetched

    folder = fetched(options.run_folder)
    found = picked(folder, options.trial)  # before anything is started
    from mft_ray.report.summary import document
    from mft_ray.searches.pipeline import search

    return document(search(None, str(folder), pick=found.trial.trial_id).root)


COMMAND = Command(
    summary="judge another trial than the best on validation, and take its mask",
    description="Judge a trial of your choice on the test examples, such as a smaller mask or a faster one, and leave "
    "its mask (or adapter) and model in RUN/best. Where the test examples were looked at before, the verdict says "
    "that this was a further look. A model alone, without a verdict: mft-ray export RUN --trial ID.",
    examples="""
    mft-ray pick runs/mine 954d45f6
    """,
    add_options=_add_options,
    run=_run,
)
