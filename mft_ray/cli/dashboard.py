"""Look at a search in a browser, as it goes or afterwards."""

from __future__ import annotations

import argparse
from pathlib import Path

from mft_ray.cli.options import Command


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="run folder of a search")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, help="port to listen on (default: 8080, or a free one if that is in use)")


def _run(options: argparse.Namespace) -> None:
    from mft_ray.report.study_server import serve

    serve(options.run_folder, options.host, options.port)


COMMAND = Command(
    summary="browse a search's trials while it runs or afterwards",
    description="Browse a search's trials (optuna-dashboard on RUN/study.db), while it runs or afterwards.",
    examples="""
    mft-ray dashboard runs/quickstart-20260101-120000
    mft-ray dashboard RUN --host 0.0.0.0 --port 9000
    """,
    add_options=_add_options,
    run=_run,
)
