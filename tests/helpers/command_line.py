"""The command line in this process, its errors raised instead of printed."""

from __future__ import annotations

from mft_ray.cli.main import carry_out, parser


def run_command(*given: object) -> None:
    """Run a sub-command as `mft-ray` does; a mistake raises `UserError`."""
    arguments = [str(each) for each in given]
    carry_out(parser(arguments[:1]).parse_args(arguments))
