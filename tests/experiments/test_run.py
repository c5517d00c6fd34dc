"""Two whole experiments on a tiny model; the others are the same comparisons with other rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mft_ray.config import parse_config
from mft_ray.errors import UserError
from mft_ray.experiments import run as module
from mft_ray.experiments.run import run_experiments


@pytest.fixture(scope="module")
def tree(make_tiny: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Settings of seconds."""
    tree = make_tiny()
    tree["train"] |= {"steps": 10, "eval_every": 5}
    tree["mask"] = {"init": "magnitude", "schedule": "anneal"}
    tree["evaluation"] |= {"task_max_new_tokens": 3}
    return tree


@pytest.fixture(scope="module")
def flat(ray_cluster: None, tree: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two experiments of two seeds that were interrupted after their first comparison and resumed."""
    root = tmp_path_factory.mktemp("experiments") / "run"
    config = parse_config({**tree, "run": {"dir": str(root)}, "experiment": {"seeds": 2, "ratios": [0.1]}})
    with pytest.MonkeyPatch.context() as patch:
        compare = module.compare

        def once(config: Any, resume: Any = None, group: Any = None) -> Any:
            patch.setattr(module, "compare", interrupt)
            return compare(config, resume, group)

        def interrupt(*_: Any, **__: Any) -> Any:
            raise KeyboardInterrupt

        patch.setattr(module, "compare", once)
        with pytest.raises(KeyboardInterrupt):
            run_experiments(["flatness", "ratio"], config)
    done = root / "runs" / "flatness" / "seed-0" / "all" / "comparison.json"
    before = done.stat().st_mtime_ns
    assert not (root / "flatness.md").exists()
    run_experiments(["flatness", "ratio"], None, str(root))
    assert done.stat().st_mtime_ns == before
    return root


@pytest.mark.slow
def test_an_experiment_leaves_table_figure_and_raw_rows(flat: Path) -> None:
    content = json.loads((flat / "flatness.json").read_text())
    assert {(row["seed"], row["row"]) for row in content["rows"]} == {
        (seed, row) for seed in (0, 1) for row in ("fft", "continued_fft", "mft")
    }
    for row in content["rows"]:
        comparison = json.loads(
            (flat / "runs" / "flatness" / f"seed-{row['seed']}" / "all" / "comparison.json").read_text()
        )
        assert comparison["scores"][0]["rows"][row["row"]]["score"] == row["score"]
    assert len(content["curves"]) == 6
    for ending in ("md", "png", "svg"):
        assert (flat / f"flatness.{ending}").stat().st_size > 500


@pytest.mark.slow
def test_seeds_are_other_models_and_data(flat: Path) -> None:
    prints = {path.read_text() for path in flat.glob("runs/flatness/*/all/work/fft_model.json")}
    assert len({json.loads(text)["fingerprint"] for text in prints}) == 2


@pytest.mark.slow
def test_the_loss_rises_away_from_each_model(flat: Path) -> None:
    more = json.loads((flat / "flatness.json").read_text())["more"]
    assert len(more) == 6
    for each in more:
        middle = each["distances"].index(0.0)
        rises = [line[0] - line[middle] for line in each["losses"]]
        assert sum(rises) / len(rises) > 0
        assert each["top_eigenvalue"] > 0


@pytest.mark.slow
def test_experiments_are_not_taken_for_others(flat: Path) -> None:
    with pytest.raises(UserError, match=r"the experiments flatness, ratio, not ratio: .* flatness ratio --resume it"):
        run_experiments(["ratio"], None, str(flat))


@pytest.mark.slow
def test_experiments_share_the_fft_models_that_they_have_in_common(flat: Path) -> None:
    for seed in (0, 1):
        first, second = (flat / "runs" / name / f"seed-{seed}" / "all" for name in ("flatness", "ratio"))
        assert (first / "work/fft/outcome.json").samefile(second / "work/fft/outcome.json")
        assert json.loads((second / "work/fft_model.json").read_text())["model"] == str(second / "work/fft/best")
        rows = [json.loads((run / "comparison.json").read_text())["rows"] for run in (first, second)]
        assert rows[0][0] == rows[1][0]
        assert {row["name"] for row in rows[1]} == {"fft", "ratio 0.1"}


@pytest.mark.slow
def test_masks_of_one_domain_are_judged_on_the_others(ray_cluster: None, tree: dict[str, Any], tmp_path: Path) -> None:
    domains = {"addition": {"data": {"operations": "+", "n_train": 20, "n_validation": 10, "n_test": 12}}}
    domains["subtraction"] = {"data": {**domains["addition"]["data"], "operations": "-"}}
    study_ = {"seeds": 1, "domains": domains}
    root = run_experiments(
        ["transfer"], parse_config({**tree, "run": {"dir": str(tmp_path / "run")}, "experiment": study_})
    )
    rows = json.loads((root / "transfer.json").read_text())["rows"]
    judged = {(row["panel"], row["on"]) for row in rows if row["row"] == "mft"}
    assert judged == {
        ("addition", "test"),
        ("addition", "subtraction"),
        ("subtraction", "test"),
        ("subtraction", "addition"),
    }
    lines = [json.loads(line) for line in (root / "tasks" / "seed-0" / "addition.jsonl").read_text().splitlines()]
    assert len(lines) == 12
    assert all(eval(line["prompt"].rstrip("=")) == int(line["answer"]) for line in lines)
    assert all("+" in line["prompt"] for line in lines)


def test_what_cannot_work_is_refused_before_anything_is_written(tree: dict[str, Any], tmp_path: Path) -> None:
    config = parse_config({**tree, "run": {"dir": str(tmp_path / "run")}, "experiment": {"group_sizes": [3]}})
    with pytest.raises(UserError, match="has 3, and the model has 2 decoder layers"):
        run_experiments(["layers"], config)
    domains = {"a": {"train": {"lr": 1}}, "b": {}}
    with pytest.raises(UserError, match="a changes train; a domain may change data and evaluation"):
        parse_config({**tree, "run": {"dir": str(tmp_path / "run")}, "experiment": {"domains": domains}})
    assert not (tmp_path / "run").exists()


def test_tasks_that_leave_no_room_are_refused_before_anything_is_trained(
    ray_cluster: None, tree: dict[str, Any], tmp_path: Path
) -> None:
    sizes = {"n_train": 20, "n_validation": 10, "n_test": 12}
    domains = {name: {"data": {**sizes, "operations": sign}} for name, sign in (("a", "+"), ("b", "-"))}
    more = {"evaluation": {"metric": "exact_match"}, "experiment": {"seeds": 1, "domains": domains}}
    with pytest.raises(UserError, match="32 positions, so 256 new tokens leave no room"):
        run_experiments(["transfer"], parse_config({**tree, **more, "run": {"dir": str(tmp_path / "run")}}))
    assert not (tmp_path / "run" / "runs").exists()
