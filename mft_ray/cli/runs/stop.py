"""End a trial, or a search, in order."""

from __future__ import annotations

import argparse

from mft_ray.cli.options import Command


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", help="run folder of a search that goes on")
    parser.add_argument("--trial", metavar="ID", help="end this trial only, with its next evaluation")


def _run(options: argparse.Namespace) -> None:
    from mft_ray.runs.live.steering import stop
    from mft_ray.runs.stored import fetched

    print(stop(fetched(options.run_folder), options.trial))


COMMAND = Command(
    summary="end a search after the trials at work and judge, or end one trial",
    description="Have a search begin no more trials: those at work end as they would, and the verdict is on what there "
    "is. With --trial, have one trial end with its next evaluation; it counts with what it has reached. A search "
    "that was ended goes on with mft-ray tune --resume RUN.",
    examples="""
    mft-ray stop runs/mine
    mft-ray stop runs/mine --trial 954d45f6
    """,
    add_options=_add_options,
    run=_run,
)
