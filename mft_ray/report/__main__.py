"""Write a run's report again: ``python -m mft_ray.report RUN``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mft_ray.errors import UserError
from mft_ray.report.html import render


def main(arguments: Sequence[str] | None = None) -> int:
    """Render the report and print where it is; the exit status is 2 when the folder is of no use."""
    parser = argparse.ArgumentParser(
        prog="python -m mft_ray.report",
        description="Write RUN/report.html, one self-contained page: the verdict, the leaderboard, curves "
        "against the FFT baseline, and the configuration. A search without a verdict has one too.",
        epilog="example: python -m mft_ray.report runs/quickstart-20260101-120000",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder of a search")
    options = parser.parse_args(arguments)
    try:
        path = render(options.run)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"report  {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
