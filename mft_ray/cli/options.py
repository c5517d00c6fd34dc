"""What sub-commands share: --config, --set, --resume, --quiet and --json, and how each is described."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from mft_ray.config import Config, load_config
from mft_ray.errors import UserError


@dataclass(frozen=True)
class Command:
    """A sub-command.

    Attributes:
        summary: one line for the list of commands.
        description: paragraph for its own help.
        examples: command lines, one a line.
        add_options: adds its options to a parser.
        run: does what the options say; returns the document of --json, for a command that has one.
    """

    summary: str
    description: str
    examples: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], object]


def add_config(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add ``--config FILE`` and ``--set path=value``."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        required=required,
        help="YAML file of settings, or the name of one that comes with mft_ray, such as quickstart",
    )
    parser.add_argument(
        "--set",
        metavar="PATH=VALUE",
        action="append",
        default=[],
        dest="overrides",
        help="change one setting, such as search.trials=4; may be repeated",
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add what a long command takes: ``--config`` for a new run, ``--resume`` for one to go on with, and ``--set``."""
    add_config(parser, required=False)
    parser.add_argument(
        "--resume",
        metavar="RUN",
        help="go on with an interrupted run, or add to a finished one (--set search.trials=32): its folder, or its "
        "address in an object store. With --set, settings change that nothing was made with yet, and those that "
        "results do not depend on; others are refused by name",
    )


def add_output(parser: argparse.ArgumentParser, quiet: bool = True) -> None:
    """Add ``--json`` and, to a command that takes long, ``--quiet``.

    Args:
        parser: parser of the sub-command.
        quiet: whether the command prints progress.
    """
    if quiet:
        parser.add_argument("--quiet", action="store_true", help="print warnings, errors and the result only")
    rest = "; all else goes to stderr" if quiet else ""
    parser.add_argument("--json", action="store_true", help=f"print the result as one JSON document on stdout{rest}")


def read_run(options: argparse.Namespace) -> tuple[Config | None, str | None]:
    """Return the configuration of a new run, or the folder of one to go on with, and its changed configuration.

    Raises:
        UserError: both are given, or neither.
    """
    if (options.config is None) == (options.resume is None):
        raise UserError("Give either --config FILE for a new run or --resume RUN for an interrupted one.")
    if options.resume is None:
        return read_config(options), None
    if not options.overrides:
        return None, options.resume
    from mft_ray.runs.stored import fetched

    return load_config(fetched(options.resume, "--resume") / "config.yaml", options.overrides), options.resume


def read_config(options: argparse.Namespace) -> Config:
    """Return the configuration that the options name."""
    return load_config(options.config, options.overrides)


def count(given: str) -> int:
    """Return a number from 1, for argparse."""
    if not given.isdecimal() or int(given) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {given!r}")
    return int(given)
