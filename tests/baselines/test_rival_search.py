"""A search over the settings of a rival method, here LoRA, leaves what a search over masks does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mft_ray.config import METHODS, parse_config
from mft_ray.config.params import apply
from mft_ray.errors import UserError
from mft_ray.evaluation.answers import match
from mft_ray.models.artifacts import load_with
from mft_ray.models.loading import load_model
from mft_ray.runs.folder import RunFolder
from mft_ray.searches.checks import check_search
from mft_ray.searches.space import build_space, points_to_evaluate
from mft_ray.training.job import Outcome

PARAMETERS = {
    "mft": {"ratio", "layers", "target", "lr", "init", "schedule"},
    "lora": {"rank", "layers", "target", "lr"},
    "fft": {"lr", "weight_decay", "dropout"},
    "continued_fft": {"lr", "weight_decay", "dropout"},
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_parameters_and_trials_follow_them(tiny: dict[str, Any], method: str) -> None:
    config = parse_config({**tiny, "search": {"method": method, "trials": 16}})
    space, points = build_space(config, 32), points_to_evaluate(config, 32)
    assert space.keys() == points[0].keys() == PARAMETERS.get(method, {"ratio", "layers", "target"})
    assert len(points) == (2 if METHODS[method].masks else 1)  # the paper's second group of layers
    changed = {"ratio": 0.5, "layers": "0-3", "lr": 0.123, "rank": 3, "weight_decay": 0.25, "dropout": 0.2}
    point = {parameter: changed.get(parameter, value) for parameter, value in points[0].items()}
    how = METHODS[method].recipe(apply(config, point))
    if "lr" in point:
        assert how.train.lr == 0.123
    for part in (how.train, how.mask, how.lora):
        for parameter in ("ratio", "layers", "rank", "weight_decay", "dropout"):
            own_dropout = part is how.lora and parameter == "dropout"
            if hasattr(part, parameter) and parameter in point and not own_dropout:
                assert getattr(part, parameter) == changed[parameter]


def test_fft_cannot_be_searched_where_it_is_given(tiny: dict[str, Any], tmp_path: Path) -> None:
    given = {"model": {"path": str(tmp_path)}, "fft": {"given": True}, "search": {"method": "fft"}}
    with pytest.raises(UserError, match=r"search\.method fft trains from the model before fine-tuning"):
        check_search(parse_config({**tiny, **given}), torch.nn.Module())


def test_a_front_of_ratios_needs_a_ratio(tiny: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="method lora has no masking ratio"):
        parse_config({**tiny, "search": {"method": "lora", "objectives": "score_and_ratio"}})


@pytest.fixture(scope="module")
def run(lora_run: RunFolder) -> Path:
    return lora_run.root


@pytest.mark.slow
def test_trials_are_of_the_method_and_the_best_is_kept(run: Path) -> None:
    rows = json.loads((run / "leaderboard.json").read_text())["trials"]
    assert [set(row["config"]) for row in rows] == [PARAMETERS["lora"]] * 3
    assert all(row["cost"]["flops"] > 0 for row in rows)
    kept = {path.parent.name for path in (run / "work" / "trials").glob("*/adapter")}
    assert kept == {rows[0]["trial_id"]}
    tree = yaml.safe_load((run / "best" / "config.yaml").read_text())
    assert tree["lora"] == rows[0]["config"]
    assert tree["trial_id"] == rows[0]["trial_id"]


@pytest.mark.slow
def test_the_model_is_the_backbone_with_the_adapter(run: Path) -> None:
    tokens = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        adapted = load_with(str(run / "work" / "fft" / "best"), str(run / "best" / "adapter"))(tokens).logits
        torch.testing.assert_close(load_model(run / "best" / "model")(tokens).logits, adapted, rtol=1e-4, atol=1e-4)
    assert "--adapter" in (run / "best" / "README.md").read_text()


@pytest.mark.slow
def test_the_verdict_is_of_the_method_and_has_its_tasks(run: Path) -> None:
    verdict = json.loads((run / "verdict.json").read_text())
    assert verdict["method"] == "lora"
    assert "the model with the adapter scores" in verdict["sentence"]
    [extra] = verdict["extra"]
    assert extra["metric"].endswith("mine.jsonl: score")
    assert extra["n"] == 2
    [other] = verdict["other_tasks"]
    assert other["metric"].endswith("theirs.jsonl: score")
    assert not other["worse"]
    report = (run / "report.html").read_text()
    assert "Tasks that it was not tuned for" in report
    assert "adapter search against the fully fine-tuned model" in report


@pytest.mark.slow
def test_examples_on_which_the_two_differ_are_kept_and_shown(run: Path) -> None:
    sets = {each["on"]: each["examples"] for each in json.loads((run / "work/discordant.json").read_text())["sets"]}
    assert "test" in sets
    assert len(sets) == 3  # two tasks
    scores = {
        name: json.loads((run / f"work/scores/{name}-test-generated_match.json").read_text()) for name in ("fft", "mft")
    }
    wins, losses = (
        sum(sign * (after - before) > 0 for before, after in zip(scores["fft"], scores["mft"], strict=True))
        for sign in (1, -1)
    )
    assert len(sets["test"]) == min(wins, 5) + min(losses, 5)
    for example in sets["test"]:
        assert example["scores"] == {name: scores[name][example["index"]] for name in scores}
        for name in ("fft", "mft"):
            assert match(example[name], example["answer"]) == (example["scores"][name] == 1)
    report = (run / "report.html").read_text()
    assert ("Where the two differ" in report) == any(sets.values())


@pytest.mark.slow
def test_the_verdict_has_the_best_rival_on_validation(run: Path) -> None:
    verdict = json.loads((run / "verdict.json").read_text())
    outcomes = {path.parent.name: Outcome.load(path) for path in (run / "work" / "rivals").glob("*/outcome.json")}
    scores = {name: outcome.best_evaluation.score for name, outcome in outcomes.items() if outcome.best_evaluation}
    assert scores.keys() == {"l1_mask", "wanda_mask"}
    assert scores[verdict["rival"]["method"]] == max(scores.values())
    assert verdict["rival"]["delta"] == pytest.approx(verdict["mft"] - verdict["rival"]["score"])
    assert "Against the best rival on validation" in verdict["sentence"]


@pytest.mark.slow
def test_another_seed_is_another_fft_with_the_winners_settings(run: Path) -> None:
    verdict = json.loads((run / "verdict.json").read_text())
    seeds, first = verdict["seeds"], verdict["seeds"]["runs"][0]
    assert (seeds["n"], len(seeds["runs"])) == (2, 2)
    assert (first["fft"], first["mft"], first["continued"]) == (
        verdict["fft"],
        verdict["mft"],
        verdict["continued_fft"],
    )
    prints = [
        json.loads((at / "fft_model.json").read_text())["fingerprint"]
        for at in (run / "work", run / "work/seeds/1/work")
    ]
    assert prints[0] != prints[1]
    again = Outcome.load(run / "work/seeds/1/work/trials/winner/outcome.json")
    winner = Outcome.load(run / "work/trials" / verdict["trial_id"] / "outcome.json")
    assert again.cost
    assert winner.cost
    assert again.cost.trainable == winner.cost.trainable
    assert again.history[-1].tokens > 0
    assert "Over 2 seeds" in verdict["sentence"]
    assert verdict["selection"] == {
        "split": "validation",
        "n": 40,
        "metric": "generated_match",
        "trials": 3,
        "by_person": False,
    }
    assert [each["trial_id"] for each in verdict["looks"]] == [verdict["trial_id"]]
