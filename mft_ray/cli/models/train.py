"""One training run without a search."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from mft_ray.cli.options import Command, add_config, add_output, read_config
from mft_ray.config import METHODS
from mft_ray.errors import UserError
from mft_ray.utils.json_types import JsonObject


def _add_options(parser: argparse.ArgumentParser) -> None:
    known = "; ".join(f"{name}: {spec.description}" for name, spec in METHODS.items())
    parser.add_argument("--method", choices=tuple(METHODS), required=True, help=known)
    add_config(parser)
    parser.add_argument("--out", metavar="FOLDER", required=True, help="folder for the result; seen by every node")
    add_output(parser)


def _run(options: argparse.Namespace) -> JsonObject:
    config = read_config(options)
    if options.method != "fft" and config.model.path is None:
        raise UserError(
            f"Method {options.method} starts from a model that is fine-tuned: give model.path, that checkpoint."
        )
    from mft_ray.runs.once.train import train_once

    path, outcome = train_once(options.method, config, options.out)
    return {"schema": 1, "method": options.method, "path": str(path), **asdict(outcome)}


COMMAND = Command(
    summary="train once by one method: a model, a mask or an adapter",
    description="Train once, by the loop that searches use, and leave a model, a mask or an adapter. fft starts from "
    "model.path or model.architecture; for all other methods model.path is the fine-tuned model. An interrupted "
    "run goes on when called again, a finished one is not trained again, and other settings or another method are "
    "refused there.",
    examples="""
    mft-ray train --method fft --config quickstart --out runs/my-fft
    mft-ray train --method mft --config FILE --out runs/my-mask --set mask.ratio=0.3 --set train.lr=3e-3
    mft-ray train --method l1_mask --config FILE --out runs/rival --set mask.ratio=0.3
    mft-ray train --method lora --config FILE --out runs/my-adapter --set lora.rank=16
    """,
    add_options=_add_options,
    run=_run,
)
