"""What this machine or a cluster has, and what is wrong with it."""

from __future__ import annotations

import argparse
from pathlib import Path

from mft_ray.cli.options import Command
from mft_ray.errors import RunFailed

_SIGNS = {"ok": "ok   ", "note": "note ", "wrong": "WRONG"}


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address", metavar="ADDRESS", help="a cluster to look at, such as HOST:6379, or auto on one of its nodes"
    )
    parser.add_argument(
        "--run-dir",
        metavar="FOLDER",
        type=Path,
        help="where runs are to go; with --address written from each node and read from all others",
    )


def _run(options: argparse.Namespace) -> None:
    from mft_ray.preflight.doctor import look_at_cluster, look_at_machine

    folder = options.run_dir.expanduser().absolute() if options.run_dir else None
    looked = look_at_cluster(options.address, folder) if options.address else look_at_machine(folder)
    wrong = 0
    for finding in looked:
        wrong += finding.status == "wrong"
        print(f"{_SIGNS[finding.status]} {finding.name}: {finding.text}", flush=True)
    if wrong:
        raise RunFailed(f"{wrong} thing{'s are' if wrong > 1 else ' is'} wrong, marked WRONG above.")


COMMAND = Command(
    summary="say what this machine or a cluster has, and what is wrong with it",
    description="Look at versions, processors, memory, GPUs, disk, proxies and ports of this machine and start a Ray "
    "on it; with --address at every node of a cluster, and whether all see one run folder. Exit status 1 where "
    "something is wrong.",
    examples="""
    mft-ray doctor
    mft-ray doctor --address auto --run-dir /mnt/runs
    ray job submit --address http://HOST:8265 -- mft-ray doctor --address auto --run-dir /mnt/runs
    """,
    add_options=_add_options,
    run=_run,
)
