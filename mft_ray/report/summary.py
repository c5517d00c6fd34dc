"""How a search ends, for who reads it: lines on a terminal, one document for a program."""

from __future__ import annotations

from pathlib import Path

from mft_ray.models.names import ADAPTER, BEST_MODEL, MASK
from mft_ray.report.leaderboard import show
from mft_ray.report.next_steps import lines, next_steps
from mft_ray.runs.reading import read
from mft_ray.utils.json_types import JsonObject

_LEFT = (("mask", MASK), ("adapter", ADAPTER), ("model", BEST_MODEL))


def tell(folder: Path) -> None:
    """Print what a search has found, where it lies, and what to do next.

    Args:
        folder: run folder of a search with a verdict.
    """
    show(folder)
    run = read(folder)
    sentence = run.verdict.sentence if run.verdict else None
    print(f"\n{sentence}\n")
    print(f"report  {folder / 'report.html'}")
    for label, name in _LEFT:
        if (path := folder / "best" / name).exists():
            print(f"{label:<7} {path}")
    print(f"study   mft-ray dashboard {folder}")
    print("", *lines(next_steps(run)), sep="\n", flush=True)


def document(folder: Path) -> JsonObject:
    """Return what a search has found as ``--json`` prints it.

    Args:
        folder: run folder.
    """
    run = read(folder)
    there = {name: folder / "best" / path for name, path in _LEFT}
    return {
        "schema": 1,
        "run": str(folder),
        "verdict": run.verdict.content() if run.verdict else None,
        "winner": run.winner.content() if run.winner else None,
        "best": {name: str(path) if path.exists() else None for name, path in there.items()},
        "report": str(folder / "report.html"),
        "next_steps": [{"why": step.why, "command": step.command} for step in next_steps(run)],
    }
