"""Publish a mask, an adapter or a model on the Hugging Face hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from mft_ray.cli.options import Command, add_output
from mft_ray.utils.json_types import JsonObject


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", help="run folder of a search, or its address")
    parser.add_argument("repo", metavar="OWNER/NAME", help="repository on the hub; made if it is not there")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--mask", dest="kind", action="store_const", const="mask", help="the mask alone; so it is anyway")
    kind.add_argument(
        "--model", dest="kind", action="store_const", const="model", help="the whole model with the mask in its weights"
    )
    parser.add_argument(
        "--trial", metavar="ID", help="another trial than the one that was judged; its card says that it was not"
    )
    parser.add_argument(
        "--backbone",
        metavar="OWNER/NAME",
        help="repository for the FFT model, where that was trained here: without it nobody else can use the mask",
    )
    parser.add_argument("--private", action="store_true", help="readable by the owner alone")
    parser.add_argument(
        "--dry-run", metavar="FOLDER", help="write what would be uploaded to a new folder, and ask no network"
    )
    add_output(parser)


def _run(options: argparse.Namespace) -> JsonObject:
    from mft_ray.publishing.push import push
    from mft_ray.runs.stored import fetched

    dry_run = None if options.dry_run is None else Path(options.dry_run)
    where = push(
        fetched(options.run_folder),
        options.repo,
        kind=options.kind,
        trial_id=options.trial,
        backbone=options.backbone,
        private=options.private,
        dry_run=dry_run,
    )
    print(where if dry_run is None else f"wrote {where}; nothing was uploaded")
    return {"schema": 1, "published": where, "dry_run": dry_run is not None}


COMMAND = Command(
    summary="publish a mask, an adapter or a model on the Hugging Face hub",
    description="Upload what a search has found, with a model card that has its verdict, cost and limits: the mask of "
    "the trial that was judged (or what another method has made), or the whole model. The token is that of hf auth "
    "login, or HF_TOKEN. Others load it with mft_ray.load_masked(BACKBONE, OWNER/NAME).",
    examples="""
    mft-ray push runs/mine me/my-mask --dry-run look
    mft-ray push runs/mine me/my-mask --backbone me/my-fft-model --private
    mft-ray push runs/mine me/my-model --model
    """,
    add_options=_add_options,
    run=_run,
)
