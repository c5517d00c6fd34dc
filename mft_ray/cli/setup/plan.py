"""What a search will take, before anything is rented."""

from __future__ import annotations

import argparse
import math

from mft_ray.cli.options import Command, add_config, add_output, count, read_config
from mft_ray.errors import UserError
from mft_ray.utils.json_types import JsonObject


def _price(given: str) -> float:
    try:
        price = float(given)
    except ValueError:
        price = math.nan
    if not math.isfinite(price) or price < 0:
        raise argparse.ArgumentTypeError(f"must be dollars for an hour of one GPU, such as 2.5, got {given!r}")
    return price


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument(
        "--gpu",
        metavar="CARD",
        nargs="+",
        default=[],
        help="cards to plan for, each by itself, such as h100-80g; without it, what this machine has",
    )
    parser.add_argument(
        "--gpus", metavar="N", type=count, help="how many of them there will be (default: what one training asks for)"
    )
    parser.add_argument("--price", metavar="DOLLARS", type=_price, help="of one GPU in an hour; without it, hours only")
    parser.add_argument(
        "--length", metavar="TOKENS", type=count, help="mean of an example, instead of a look at the data"
    )
    add_output(parser, quiet=False)


def _run(options: argparse.Namespace) -> list[JsonObject]:
    config = read_config(options)
    if not options.gpu and (options.gpus or options.price is not None):
        raise UserError("--gpus and --price are of cards that --gpu names. Give --gpu too, such as --gpu h100-80g.")
    from mft_ray.preflight.advice import advice_for
    from mft_ray.preflight.cards import card
    from mft_ray.preflight.plan import plan, subject
    from mft_ray.preflight.plan_text import as_json, lines_of

    for name in options.gpu:
        card(name)  # a mistyped one is told before anything is looked at
    found = []
    for name in options.gpu or [None]:
        it = subject(config, name, options.length)
        made = plan(it, options.gpus, options.price)
        told = advice_for(it, made.trainings)
        found.append(as_json(made, told))
        if not options.json:
            print("\n".join(["", *lines_of(made, told)] if len(found) > 1 else lines_of(made, told)), flush=True)
    return found


COMMAND = Command(
    summary="say what a search will take, before anything is rented: memory, disk, hours, dollars",
    description="Work out from shapes alone, without weights, what a search will take on a kind of GPU, or on this "
    "machine: memory of a worker's device by part, host memory, disk, steps, tokens, hours, trials at once. Says what "
    "does not fit and what would make it fit, and what of all this is measured and what assumed.",
    examples="""
    mft-ray plan --config quickstart
    mft-ray plan --config my-search.yaml --gpu h100-80g a100-40g --gpus 8 --price 2.5
    mft-ray plan --config my-search.yaml --gpu l4-24g --set scaling.zero_stage=3 --length 700 --json
    """,
    add_options=_add_options,
    run=_run,
)
