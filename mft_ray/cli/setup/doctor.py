"""What this machine or a cluster has, and what is wrong with it."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mft_ray.cli.options import Command, add_config
from mft_ray.config import load_config
from mft_ray.errors import RunFailed, UserError
from mft_ray.preflight.finding import Finding
from mft_ray.store.address import Address, is_address

_SIGNS = {"ok": "ok   ", "note": "note ", "wrong": "WRONG"}


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address", metavar="ADDRESS", help="a cluster to look at, such as HOST:6379, or auto on one of its nodes"
    )
    parser.add_argument(
        "--run-dir",
        metavar="FOLDER",
        help="where runs are to go; with --address written from each node and read from all others. An address in an "
        "object store, such as s3://BUCKET/runs, is looked at by itself",
    )
    parser.add_argument(
        "--cluster",
        metavar="FILE",
        type=Path,
        help="a cluster's file, to look at before ray up, kubectl apply or sbatch; with --run-dir as nodes see that "
        "(default: /mnt/runs)",
    )
    add_config(parser, required=False)


def _run(options: argparse.Namespace) -> None:
    counted: Counter[str] = Counter()
    for finding in _looked(options):
        counted[finding.status] += 1
        print(f"{_SIGNS[finding.status]} {finding.name}: {finding.text}", flush=True)
    if options.cluster:
        print(f"{options.cluster}: {counted['ok']} ok, {counted['note']} to know, {counted['wrong']} wrong", flush=True)
    if wrong := counted["wrong"]:
        raise RunFailed(f"{wrong} thing{'s are' if wrong > 1 else ' is'} wrong, marked WRONG above.")


def _looked(options: argparse.Namespace) -> Iterator[Finding]:
    if options.run_dir and is_address(options.run_dir):
        from mft_ray.preflight.stores import look_at_store

        if options.address or options.cluster or options.config or options.overrides:
            raise UserError("An object store is looked at by itself: give --run-dir without another option.")
        return look_at_store(Address.parse(options.run_dir, "--run-dir"))
    folder = Path(options.run_dir).expanduser().absolute() if options.run_dir else None
    if options.cluster is None:
        from mft_ray.preflight.doctor import look_at_cluster, look_at_machine

        if options.config or options.overrides:
            raise UserError("--config and --set say what a cluster's file must have room for. Give --cluster FILE too.")
        return look_at_cluster(options.address, folder) if options.address else look_at_machine(folder)
    from mft_ray.preflight.cluster_files.look import look_at_file

    if options.address:
        raise UserError("--cluster looks at a file, --address at a cluster that is there. Give one of them.")
    if options.overrides and not options.config:
        raise UserError("--set changes a configuration. Give --config FILE too, or leave it out.")
    return look_at_file(
        options.cluster, load_config(options.config, options.overrides) if options.config else None, folder
    )


COMMAND = Command(
    summary="say what this machine or a cluster has, and what is wrong with it",
    description="Look at versions, processors, memory, GPUs, disk, proxies and ports of this machine and start a Ray "
    "on it; with --address at every node of a cluster, and whether all see one run folder; with --cluster at a file "
    "that a cluster is to be made by, and with --config whether that search has room there; with s3://… as --run-dir "
    "at whether that store does what a run needs. Exit status 1 where something is wrong.",
    examples="""
    mft-ray doctor
    mft-ray doctor --address auto --run-dir /mnt/runs
    mft-ray doctor --run-dir s3://BUCKET/runs
    mft-ray doctor --cluster cluster/aws.yaml --config FILE
    ray job submit --address http://HOST:8265 -- mft-ray doctor --address auto --run-dir /mnt/runs
    """,
    add_options=_add_options,
    run=_run,
)
