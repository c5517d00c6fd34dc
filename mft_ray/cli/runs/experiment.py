"""Run the paper's experiments over seeds."""

from __future__ import annotations

import argparse

from mft_ray.cli.options import Command, add_output, add_run, read_run
from mft_ray.experiments.catalogue import EXPERIMENTS
from mft_ray.utils.json_types import JsonObject


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names",
        nargs="+",
        choices=tuple(EXPERIMENTS),
        metavar="NAME",
        help=f"of an experiment: {', '.join(EXPERIMENTS)}. Several share the FFT models that they have in common",
    )
    add_run(parser)
    add_output(parser)


def _run(options: argparse.Namespace) -> JsonObject:
    config, resume = read_run(options)
    from mft_ray.experiments.run import run_experiments
    from mft_ray.utils.files import read_json

    folder = run_experiments(options.names, config, resume)
    found = {name: read_json(folder / f"{name}.json", dict) for name in options.names}
    tables = {name: str(folder / f"{name}.md") for name in options.names}
    return {"schema": 1, "run": str(folder), "experiments": found, "tables": tables}


COMMAND = Command(
    summary="repeat the paper's experiments over several seeds",
    description="Repeat experiments of the Mask Fine-Tuning paper (arXiv 2503.22764) on your model and data, over "
    "several seeds. Leaves of each a table with intervals, a figure and the raw rows.",
    examples="""
    mft-ray experiment ratio --config experiments/toy
    mft-ray experiment curves layers ratio --config FILE
    mft-ray experiment layers --config FILE --set experiment.seeds=5 --set experiment.group_sizes='[4, 8]'
    mft-ray experiment transfer --config experiments/toy
    mft-ray experiment ratio --resume runs/toy-20260101-120000
    """,
    add_options=_add_options,
    run=_run,
)
