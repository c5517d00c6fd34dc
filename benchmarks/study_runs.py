"""What benchmarks share that look again at the comparisons a study has left."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from mft_ray.data.collate import collate
from mft_ray.data.store import open_split
from mft_ray.evaluation.metrics import per_example
from mft_ray.evaluation.statistics import interval
from mft_ray.models.loading import load_model, load_tokenizer

METRIC = "exact_match"


def options(doc: str | None) -> argparse.Namespace:
    """Read what all of them are told: the study's folder and where to keep the result."""
    arguments = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("run", type=Path)
    arguments.add_argument("--out", type=Path, help="writes OUT.json and OUT.md")
    return arguments.parse_args()


def comparisons(study: Path, experiment: str) -> Iterator[tuple[dict[str, str], Path]]:
    """Yield seed and panel of each comparison of an experiment, and its folder."""
    for run in sorted((study / "runs" / experiment).glob("seed-*/*")):
        yield {"seed": run.parent.name, "panel": run.name}, run


def fft_model(run: Path) -> torch.nn.Module:
    return load_model(run / "work" / "fft" / "best")


def training_batches(run: Path, count: int, size: int) -> list[dict[str, torch.Tensor]]:
    """Return the first batches of training examples."""
    split = open_split(run / "work" / "data", "train")
    pad_id = load_tokenizer(run / "work" / "data" / "tokenizer").pad_token_id
    rows = [split[at] for at in range(min(count * size, len(split)))]
    return [collate(rows[at : at + size], pad_id) for at in range(0, len(rows), size)]


def scorer(run: Path, split: str) -> Callable[[torch.nn.Module], float]:
    """Return what gives a model's score on a split, which is read once."""
    data = run / "work" / "data"
    tokenizer, rows = load_tokenizer(data / "tokenizer"), list(open_split(data, split))
    ids = {"pad_id": tokenizer.pad_token_id, "eos_id": tokenizer.eos_token_id}

    def score(model: torch.nn.Module) -> float:
        values = per_example(model, rows, METRIC, **ids, batch_size=1000, device="cpu")
        return sum(values) / len(values)

    return score


def over_seeds(gains: Sequence[float]) -> str:
    """Return two cells of a table: the mean in points with Student's interval, and each seed's."""
    points = [100 * gain for gain in gains]
    low, high = interval(points, binary=False)
    each = ", ".join(f"{gain:+.2f}" for gain in points)
    return f"{sum(points) / len(points):+.2f} [{low:+.2f}, {high:+.2f}] | {each}"
