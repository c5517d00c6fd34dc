"""Have a configuration tried next by a search that goes on."""

from __future__ import annotations

import argparse

import yaml

from mft_ray.cli.options import Command
from mft_ray.errors import UserError


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", help="run folder of a search")
    parser.add_argument("settings", nargs="+", metavar="NAME=VALUE", help="such as ratio=0.2 layers=4-7 lr=1e-4")
    parser.add_argument("--like", metavar="ID", help="a trial whose settings are taken where none is given")


def _run(options: argparse.Namespace) -> None:
    point = dict(_setting(given) for given in options.settings)
    from mft_ray.dashboard.asked import try_next
    from mft_ray.runs.stored import fetched

    folder = fetched(options.run_folder)

    asked = try_next(folder, point, options.like)
    print(f"to be tried next: {asked.described}")
    print(asked.when)


def _setting(given: str) -> tuple[str, object]:
    name, equals, value = given.partition("=")
    if not equals or not name or not value:
        raise UserError(f"{given!r} is not of the form NAME=VALUE, such as ratio=0.2.")
    if name == "layers":
        return name, value
    try:
        # YAML has no number 1e-4.
        return name, float(value) if "e" in value.lower() and _is_number(value) else yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"The value of {given!r} cannot be read. Give a number or a name.") from None


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


COMMAND = Command(
    summary="have a search try a configuration of yours next",
    description="Put a configuration in front of those that the search would try next. What you leave open is as in "
    "the trial of --like, else as in the first that the search tries. It counts as one of search.trials.",
    examples="""
    mft-ray enqueue runs/mine ratio=0.2 layers=4-7
    mft-ray enqueue runs/mine --like 954d45f6 lr=1e-4
    """,
    add_options=_add_options,
    run=_run,
)
