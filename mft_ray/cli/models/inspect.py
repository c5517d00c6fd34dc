"""Look into masks: what each removes, where, and how alike they are."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mft_ray.cli.options import Command, add_output
from mft_ray.utils.json_types import JsonObject

if TYPE_CHECKING:
    from mft_ray.models.inspection import Inspection, Part


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "masks", metavar="MASK", nargs="+", help="mask files, such as RUN/best/mask.safetensors, or hub ids"
    )
    parser.add_argument(
        "--backbone", metavar="MODEL", help="model that they were learned on: compare with its smallest weights"
    )
    add_output(parser, quiet=False)


def _run(options: argparse.Namespace) -> JsonObject:
    from mft_ray.models.inspection import inspect

    found = inspect(options.masks, options.backbone)
    if not options.json:
        print("\n".join(_lines(found)))
    return found.as_json()


def _lines(found: Inspection) -> list[str]:
    lines = []
    for name, mask in found.masks.items():
        settings = mask.settings
        how = f"layers {settings.layers}, {settings.target}, {settings.init} init, {settings.schedule} ratio"
        lines += [f"{name}: {mask}", f"  learned with {how}, rule {settings.rule}"]
        lines += [f"  on the backbone {mask.backbone[:16]}", ""]
        parts = {"all": found.wholes[name], **{f"layer {key}": part for key, part in found.layers[name].items()}}
        lines += [*_table(parts | found.modules[name]), ""]
    if found.overlaps:
        lines.append("of the weights that either removes, both remove (Jaccard):")
    for each in found.overlaps:
        layers = ", ".join(f"{layer}: {value:.3f}" for layer, value in each.layers.items())
        lines += [
            f"  {each.first} and {each.second}: {each.jaccard:.3f}, by chance {each.chance:.3f}",
            f"    by layer {layers}",
        ]
    return lines


def _table(parts: dict[str, Part]) -> list[str]:
    head = ("", "weights", "removed", "ratio", "whole rows", "whole columns", "2:4 groups", "evenness of rows")
    rows = [head, *(_row(name, part) for name, part in parts.items())]
    widths = [max(len(row[place]) for row in rows) for place in range(len(head))]
    return [
        "  " + "  ".join(cell.rjust(width) if place else cell.ljust(width) for place, (cell, width) in enumerate(pairs))
        for pairs in (zip(row, widths, strict=True) for row in rows)
    ]


def _row(name: str, part: Part) -> tuple[str, ...]:
    return (
        name,
        f"{part.weights:,}",
        f"{part.removed:,}",
        f"{part.ratio:.4f}",
        f"{part.rows:,} of {part.of_rows:,}",
        f"{part.columns:,} of {part.of_columns:,}",
        f"{part.fitting / max(1, part.of_groups):.1%}",
        f"{part.evenness:.3f}",
    )


COMMAND = Command(
    summary="look into masks: what each removes and where, and how alike they are",
    description="Say for each mask how it was learned and what it removes, by layer and by module: weights, whole rows "
    "and columns, groups of four that 2:4 sparsity would take, and how evenly rows lose (1: all alike, 0: whole rows "
    "go). Of several masks, and with --backbone of each and the model's smallest weights, say how much of what they "
    "remove is the same, beside what chance would make the same.",
    examples="""
    mft-ray inspect runs/mine/best/mask.safetensors --backbone runs/mine/work/fft/best
    mft-ray inspect runs/one/best/mask.safetensors runs/two/best/mask.safetensors --json
    """,
    add_options=_add_options,
    run=_run,
)
