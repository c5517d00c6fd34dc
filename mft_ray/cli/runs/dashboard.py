"""Watch and steer a search in a browser."""

from __future__ import annotations

import argparse

from mft_ray.cli.options import Command


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", help="run folder of a search, or its address")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, help="port to listen on (default: 8080, or a free one if that is in use)")


def _run(options: argparse.Namespace) -> None:
    from mft_ray.dashboard.server import serve
    from mft_ray.runs.stored import followed

    with followed(options.run_folder) as folder:
        serve(folder, options.host, options.port)


COMMAND = Command(
    summary="watch a search as it goes, steer it, and pick a mask, in a browser",
    description="Show a search in a browser while it runs or afterwards: curves as they grow, the leaderboard, what is "
    "tried next. Trials can be ended, copied with changes, compared and picked. The address that is printed has a "
    "token in it, without which nothing is shown (MFT_RAY_DASHBOARD_TOKEN sets one). Optuna's own dashboard is at "
    "/optuna. It reads the run folder: the search need not know of it.",
    examples="""
    mft-ray dashboard runs/quickstart-20260101-120000
    mft-ray dashboard RUN --host 0.0.0.0 --port 9000
    """,
    add_options=_add_options,
    run=_run,
)
