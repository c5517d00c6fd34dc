"""Would a mask over heads, norm weights or MLP neurons help, where single weights do not?

    .venv/bin/python benchmarks/structured.py RECIPES_RUN --out benchmarks/results/structured

takes the FFT models that `mft-ray experiment recipes --config tune_spaces/experiments/recipes.yaml` left. No
training: units are removed one by one, each time the one of the most promising (by the first-order fall of the
training loss) that scores best on validation, until none is better than leaving all as they are. That looks harder for
a gain than a learned mask does; what was found is then judged on test.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from keep_run import keep
from study_runs import comparisons, fft_model, options, over_seeds, scorer, training_batches

KINDS = ("heads", "norms", "neurons")
CANDIDATES, ROUNDS = 16, 8
BATCH, BATCHES = 256, 4


@dataclass(frozen=True)
class Unit:
    """What is removed at once: the columns ``first`` to ``last`` of a parameter (of a vector, its elements)."""

    parameter: str
    first: int
    last: int

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor[..., self.first : self.last]


def units(model: torch.nn.Module, kind: str) -> Iterator[Unit]:
    """Yield all units of a kind. A head is its columns of the output projection, a neuron its column of the last."""
    for name, parameter in model.named_parameters():
        if kind == "heads" and name.endswith("o_proj.weight"):
            size = parameter.shape[1] // model.config.num_attention_heads
        elif (kind == "neurons" and name.endswith("down_proj.weight")) or (kind == "norms" and parameter.dim() == 1):
            size = 1
        else:
            continue
        for first in range(0, parameter.shape[-1], size):
            yield Unit(name, first, first + size)


def promises(model: torch.nn.Module, units: list[Unit], batches: list[dict[str, torch.Tensor]]) -> list[float]:
    """Return by how much the loss falls without each unit, to first order: the sum of gradient times weight."""
    model.zero_grad()
    for batch in batches:
        (model(**batch).loss / len(batches)).backward()
    with torch.no_grad():
        effects = {name: p.grad * p for name, p in model.named_parameters() if p.grad is not None}
    return [float(unit.of(effects[unit.parameter]).sum()) for unit in units]


@torch.no_grad()
def without(model: torch.nn.Module, unit: Unit, score: Callable[[], float]) -> float:
    """Return the score without a unit, which is put back."""
    place = unit.of(model.get_parameter(unit.parameter))
    kept = place.clone()
    place.zero_()
    found = score()
    place.copy_(kept)
    return found


def remove(
    model: torch.nn.Module, left: list[Unit], batches: list[dict[str, torch.Tensor]], score: Callable[[], float]
) -> list[Unit]:
    """Remove units while that makes the score better; return them."""
    removed: list[Unit] = []
    best = score()
    while left and len(removed) < ROUNDS:
        ranked = sorted(zip(promises(model, left, batches), left, strict=True), key=lambda pair: -pair[0])
        tried = {unit: without(model, unit, score) for _, unit in ranked[:CANDIDATES]}
        winner = max(tried, key=tried.__getitem__)
        if tried[winner] <= best:
            break
        best = tried[winner]
        with torch.no_grad():
            winner.of(model.get_parameter(winner.parameter)).zero_()
        removed.append(winner)
        left = [unit for unit in left if unit != winner]
    return removed


def of_run(run: Path) -> dict[str, Any]:
    """Return what was removed of one FFT model, and the differences that makes on validation and test."""
    batches = training_batches(run, BATCHES, BATCH)
    scores = {name: scorer(run, name) for name in ("validation", "test")}
    model = fft_model(run)
    before = {name: score(model) for name, score in scores.items()}
    found: dict[str, Any] = {}
    for kind in KINDS:
        model = fft_model(run)
        every = list(units(model, kind))
        removed = remove(model, every, batches, partial(scores["validation"], model))
        gains = {name: score(model) - before[name] for name, score in scores.items()}
        found[kind] = {"units": len(every), "removed": [vars(unit) for unit in removed], **gains}
    return found


def page(rows: list[dict[str, Any]], command: str) -> str:
    lines = [
        "# structured",
        "",
        f"    {command}",
        "",
        f"Units removed one by one, of the {CANDIDATES} most promising the best on 1,000 validation examples, at most",
        f"{ROUNDS}. Points of exact match over the FFT model of the same seed; Student's 95% interval over seeds.",
        "",
        "| task | units | removed | on validation, which chose | − FFT on test (95%) | each seed |",
        "| --- | --- | --- | --: | --: | --- |",
    ]
    for panel in dict.fromkeys(row["panel"] for row in rows):
        for kind in KINDS:
            mine = [row["found"][kind] for row in rows if row["panel"] == panel]
            chosen = sum(100 * found["validation"] for found in mine) / len(mine)
            counts = ", ".join(str(len(found["removed"])) for found in mine)
            gains = over_seeds([found["test"] for found in mine])
            lines.append(f"| {panel} | {kind} | {counts} of {mine[0]['units']} | {chosen:+.2f} | {gains} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    told = options(__doc__)
    rows: list[dict[str, Any]] = []
    for about, run in comparisons(told.run, "recipes"):
        rows.append({**about, "found": of_run(run)})
        print(json.dumps(rows[-1]), flush=True)
    keep(told.out, page(rows, ".venv/bin/python benchmarks/structured.py RECIPES_RUN"), {"rows": rows})


if __name__ == "__main__":
    main()
