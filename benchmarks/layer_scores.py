"""Could one cheap pass have said which layers to mask? Rank correlations with the gains that masks there had.

    .venv/bin/python benchmarks/layer_scores.py LAYERS_RUN --out benchmarks/results/layer_scores

reads what `mft-ray experiment layers --config tune_spaces/experiments/toy.yaml` left: for every seed a mask
for each group of layers. A few batches of training examples give each group a score, from the FFT model alone;
Spearman's correlation over groups with the gain on test is averaged over seeds, and its p-value is of a permutation of
groups within seeds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from keep_run import keep
from scipy import stats
from study_runs import comparisons, fft_model, options, training_batches

from mft_ray.masking import keep_mask, select

BATCHES, BATCH_SIZE = 8, 64
PERMUTATIONS = 10_000
SCORES = {
    "depth": "number of the first layer",
    "magnitude": "mean of abs(W), relative to its spread",
    "sensitivity": "sum of abs(g W): what the loss feels of the group at all",
    "removal": "first-order gain of removing the smallest tenth: sum of g W there",
    "promise": "first-order gain of removing the tenth that promises most: its sum of g W",
    "disagreement": "how much the gradient differs between batches, relative to its mean (noise)",
    "wanda": "share of abs(W) ‖x‖ in its smallest tenth: how little that does",
}


def layer_scores(model: torch.nn.Module, batches: Sequence[dict[str, torch.Tensor]]) -> dict[str, dict[str, float]]:
    """Return each score of every decoder layer, by weight sums that groups can add up."""
    weights = select(model, "all", "both")
    inputs, hooks = {}, []
    for weight in weights:
        module = model.get_submodule(weight.module)

        def see(module: torch.nn.Module, given: tuple[torch.Tensor], _: Any, name: str = weight.name) -> None:
            inputs[name] = inputs.get(name, 0) + given[0].detach().flatten(0, -2).square().sum(0)

        hooks.append(module.register_forward_hook(see))
    per_batch: dict[str, list[torch.Tensor]] = {weight.name: [] for weight in weights}
    for batch in batches:
        model.zero_grad()
        model(**batch).loss.backward()
        for weight in weights:
            per_batch[weight.name].append(model.get_parameter(weight.name).grad.clone())
    for hook in hooks:
        hook.remove()
    found: dict[str, dict[str, float]] = {}
    for weight in weights:
        value = model.get_parameter(weight.name).detach()
        gradients = torch.stack(per_batch[weight.name])
        gradient = gradients.mean(0)
        effect = gradient * value  # the loss falls by so much where the weight goes to zero
        small = ~keep_mask(value, 0.1)
        reach = value.abs() * inputs[weight.name].sqrt()
        count = int(small.sum())
        each = {
            "magnitude": float(value.abs().sum() / value.std()),
            "count": float(value.numel()),
            "sensitivity": float(effect.abs().sum()),
            "removal": float(effect[small].sum()),
            "promise": float(effect.flatten().topk(count).values.sum()),
            "noise": float(gradients.var(0).sum()),
            "signal": float(gradient.square().sum()),
            "wanda_small": float(reach.flatten().topk(count, largest=False).values.sum()),
            "wanda_all": float(reach.sum()),
        }
        layer = found.setdefault(str(weight.layer), dict.fromkeys(each, 0.0))
        for name, amount in each.items():
            layer[name] += amount
    return found


def group_scores(layers: dict[str, dict[str, float]], group: str) -> dict[str, float]:
    """Return the scores of one layer group, such as 2-3."""
    first, last = (int(part) for part in group.split("-"))
    total = {name: sum(layers[str(at)][name] for at in range(first, last + 1)) for name in layers["0"]}
    return {
        "depth": float(first),
        "magnitude": total["magnitude"] / total["count"],
        "sensitivity": total["sensitivity"],
        "removal": total["removal"],
        "promise": total["promise"],
        "disagreement": total["noise"] / total["signal"],
        "wanda": total["wanda_small"] / total["wanda_all"],
    }


def of_run(run: Path) -> dict[str, Any]:
    """Return the scores and gains of every layer group of one comparison."""
    comparison = json.loads((run / "comparison.json").read_text())
    gains = {
        name.removeprefix("layers "): found["delta_fft"]
        for name, found in comparison["scores"][0]["rows"].items()
        if name.startswith("layers ")
    }
    layers = layer_scores(fft_model(run), training_batches(run, BATCHES, BATCH_SIZE))
    return {"gains": gains, "scores": {group: group_scores(layers, group) for group in gains}}


def correlation(runs: Sequence[dict[str, Any]], name: str) -> tuple[float, float]:
    """Return Spearman's correlation of a score with the gains, averaged over runs, and its permutation p-value."""
    seen, chance, rng = 0.0, np.zeros(PERMUTATIONS), np.random.default_rng(0)
    for run in runs:
        ranks = stats.rankdata([run["scores"][group][name] for group in run["gains"]])
        gains = stats.zscore(stats.rankdata(list(run["gains"].values()))) / len(ranks)
        # Spearman's correlation is Pearson's of ranks.
        ranks = stats.zscore(ranks)
        seen += float(ranks @ gains) / len(runs)
        chance += rng.permuted(np.tile(ranks, (PERMUTATIONS, 1)), axis=1) @ gains / len(runs)
    beyond = int((np.abs(chance) >= abs(seen) - 1e-12).sum())
    return seen, (beyond + 1) / (PERMUTATIONS + 1)


def page(runs: list[dict[str, Any]], command: str) -> str:
    lines = [
        "# layer_scores",
        "",
        f"    {command}",
        "",
        f"Spearman's rank correlation over layer groups, between a score from {BATCHES} batches of {BATCH_SIZE}",
        "training examples and the gain of a mask there on test; mean over seeds, p by permutation within seeds. The",
        "last column is how well the gains of one seed rank those of another: no score can be expected to do better.",
        "",
        "| groups | score | what it is | correlation | p | one seed by another |",
        "| --- | --- | --- | --: | --: | --: |",
    ]
    for panel in dict.fromkeys(run["panel"] for run in runs):
        mine = [run for run in runs if run["panel"] == panel]
        between = [
            stats.spearmanr(list(one["gains"].values()), list(other["gains"].values())).statistic
            for at, one in enumerate(mine)
            for other in mine[at + 1 :]
        ]
        ceiling = f"{np.mean(between):+.2f}" if between else "–"
        for name, what in SCORES.items():
            rho, p = correlation(mine, name)
            lines.append(f"| {panel.replace('-', ' ')} | {name} | {what} | {rho:+.2f} | {p:.3f} | {ceiling} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    told = options(__doc__)
    runs = [{**about, **of_run(run)} for about, run in comparisons(told.run, "layers")]
    keep(told.out, page(runs, ".venv/bin/python benchmarks/layer_scores.py LAYERS_RUN"), {"runs": runs})


if __name__ == "__main__":
    main()
