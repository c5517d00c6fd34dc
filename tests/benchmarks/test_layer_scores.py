"""Scores of layers from one pass, and how their ranking is held against gains."""

from __future__ import annotations

import pytest
import torch
from layer_scores import SCORES, correlation, group_scores, layer_scores
from transformers import LlamaConfig, LlamaForCausalLM

GROUPS = ("0-0", "1-1", "2-2", "3-3")


@pytest.fixture(scope="module")
def layers() -> dict[str, dict[str, float]]:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=20, **sizes))
    with torch.no_grad():  # a layer that does nothing
        model.model.layers[2].mlp.down_proj.weight.zero_()
        model.model.layers[2].self_attn.o_proj.weight.zero_()
    tokens = [torch.randint(20, (4, 8)) for _ in range(3)]
    return layer_scores(model, [{"input_ids": batch, "labels": batch} for batch in tokens])


def test_a_layer_that_does_nothing_is_felt_least(layers: dict[str, dict[str, float]]) -> None:
    felt = {group: group_scores(layers, group)["sensitivity"] for group in GROUPS}
    assert min(felt, key=felt.__getitem__) == "2-2"
    assert felt["2-2"] < 1e-6 < felt["0-0"]
    assert group_scores(layers, "0-1")["sensitivity"] == pytest.approx(felt["0-0"] + felt["1-1"])
    assert group_scores(layers, "0-0").keys() == SCORES.keys()


def test_what_promises_most_is_more_than_what_the_smallest_promise(layers: dict[str, dict[str, float]]) -> None:
    for group in GROUPS:
        scores = group_scores(layers, group)
        assert scores["promise"] >= scores["removal"]
        assert 0 <= scores["wanda"] < 0.1  # the smallest tenth holds less than a tenth


def test_a_ranking_by_the_gains_themselves_correlates_fully_and_surely() -> None:
    gains = dict(zip(GROUPS, (0.1, 0.3, 0.2, 0.4), strict=True))
    scores = {group: {"right": gain, "wrong": -gain} for group, gain in gains.items()}
    runs = [{"gains": gains, "scores": scores}] * 3
    rho, p = correlation(runs, "right")
    assert rho == pytest.approx(1)
    assert p < 0.01
    assert correlation(runs, "wrong")[0] == pytest.approx(-1)
