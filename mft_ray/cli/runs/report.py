"""Write a run's report again."""

from __future__ import annotations

import argparse

from mft_ray.cli.options import Command


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", help="run folder of a search, or its address")


def _run(options: argparse.Namespace) -> None:
    from mft_ray.report.html import render
    from mft_ray.runs.stored import fetched

    print(f"report  {render(fetched(options.run_folder))}")


COMMAND = Command(
    summary="write a run's report.html again",
    description="Write RUN/report.html, one self-contained page: the verdict, the leaderboard, curves against the FFT "
    "baseline, and the configuration. A search without a verdict has one too.",
    examples="mft-ray report runs/quickstart-20260101-120000",
    add_options=_add_options,
    run=_run,
)
