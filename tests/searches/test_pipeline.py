"""One whole search as a user runs it: killed in the middle, resumed, and everything that it leaves behind."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
import small_searches
import torch
import yaml
from optuna.samplers import RandomSampler
from optuna.trial import TrialState
from safetensors.torch import load_file

from mft_ray.config import Config, parse_config
from mft_ray.evaluation.example_scores import ExampleScores
from mft_ray.masking import fingerprint, load_mask
from mft_ray.models.loading import load_model
from mft_ray.models.names import SCORES
from mft_ray.report.disagreements import disagreement
from mft_ray.runs.study.file import STUDY_NAME, open_copy
from mft_ray.runs.study.live import LocalStudy
from mft_ray.searches.space import PAPER, paper_layers

pytestmark = [pytest.mark.slow, pytest.mark.core]

LOST = "10570000"
REASONS = {"completed", "below_fft", "plateau", "pruned", "failed", "cancelled"}
TOP_LEVEL = {"config.yaml", "data.json", "baseline.json", "leaderboard.json", "curves.json", "verdict.json", "best"}
# A folder of any name will do: this one would mean something else to a URL and to a pattern.
RUN = "a%20b [v2]#1?"


@dataclass
class Interrupted:
    """A search that was killed and resumed.

    Attributes:
        folder: of the run.
        config: what was asked for.
        finished: for each trial that had an outcome when the search was killed: the time of that file.
        resumed: the process that finished the search.
    """

    folder: Path
    config: Config
    finished: dict[Path, int]
    resumed: subprocess.CompletedProcess[str]


def _lose_a_trial(folder: Path) -> None:
    """Leave what a trial leaves that began after Tune's last snapshot, which is up to ten seconds old."""
    study = LocalStudy(folder / "study.db")
    optuna.load_study(study_name=STUDY_NAME, storage=study.storage, sampler=RandomSampler()).ask()
    study.keep()
    lost = folder / "work" / "trials" / LOST
    lost.mkdir()
    (lost / "config.json").write_text(json.dumps({**PAPER, "layers": "0-1"}))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    home = tmp_path_factory.mktemp("search")
    tree: dict[str, Any] = {
        "model": {
            "architecture": {
                "model_type": "llama",
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "max_position_embeddings": 32,
            }
        },
        "data": {"task": "arithmetic", "digits": 1, "n_train": 60, "n_validation": 40, "n_test": 50},
        "evaluation": {"metric": "exact_match", "extra": ["answer_logprob"], "resamples": 500},
        "fft": {"train": {"steps": 40, "batch_size": 16, "lr": 3e-3, "eval_every": 20, "patience": 2}},
        "train": {"steps": 30, "batch_size": 16, "eval_every": 10},
        # One at a time, so that the kill finds one trial done, one at work and one not yet begun.
        "search": {"trials": 3, "max_concurrent": 1},
    }
    (home / "tiny.yaml").write_text(yaml.safe_dump(tree))
    folder = home / RUN
    first = small_searches.start(home, "--config", "tiny.yaml", "--set", f"run.dir={RUN}")
    try:
        deadline = time.monotonic() + small_searches.TIMEOUT_S
        while not small_searches.in_the_middle(folder):
            assert first.poll() is None, first.communicate()
            assert time.monotonic() < deadline, "the search did not get to its second trial"
            time.sleep(0.1)
    finally:
        if first.poll() is None:
            small_searches.kill(first)
    _lose_a_trial(folder)
    outcomes = (folder / "work" / "trials").glob("*/outcome.json")
    finished = {path: path.stat().st_mtime_ns for path in outcomes}
    assert not (folder / "verdict.json").exists()
    return Interrupted(folder, parse_config(tree), finished, small_searches.run(home, "--resume", RUN))


def _json(run: Interrupted, name: str) -> Any:
    return json.loads((run.folder / name).read_text())


def test_an_interrupted_search_is_finished_by_resume(run):
    assert run.resumed.returncode == 0, run.resumed.stderr
    assert len(run.finished) == 1
    assert {path: path.stat().st_mtime_ns for path in run.finished} == run.finished


def test_the_run_folder_holds_what_other_programs_read(run):
    names = {path.name for path in run.folder.iterdir()}
    assert names == TOP_LEVEL | {"report.html", "study.db", "environment.json", "tensorboard", "work"}
    assert {path.name for path in (run.folder / "best").iterdir()} == {
        "mask.safetensors",
        "config.yaml",
        "README.md",
        "model",
    }
    assert not list(run.folder.rglob("*.partial*"))


def test_what_became_of_the_data_is_told(run):
    found = _json(run, "data.json")
    assert found["schema"] == 1
    assert {name: split["used"] for name, split in found["splits"].items()} == {
        "train": 60,
        "validation": 40,
        "test": 50,
    }
    assert all(split["tokens"] > split["answer_tokens"] > 0 for split in found["splits"].values())


def test_a_trial_that_has_kept_its_mask_has_its_score_on_every_validation_example(run):
    trials = _json(run, "leaderboard.json")["trials"]
    monitor = run.config.evaluation.monitor
    for row in trials:
        kept = ExampleScores.load(run.folder / "work" / "trials" / row["trial_id"] / SCORES)
        # One that was ended below FFT was never scored by the metric that decides.
        mean, metric = (row["watched"], monitor) if row["score"] is None else (row["score"], "exact_match")
        assert kept.metric == metric
        assert kept.values.shape == (40,)
        assert kept.values.mean() == pytest.approx(mean, abs=1e-6)
    scored = [row["trial_id"] for row in trials if row["score"] is not None]
    found = disagreement(run.folder, scored)
    assert (found.n, found.without, found.unread) == (40, {}, "") or len(scored) < 2
    assert all(each.prompt.endswith("=") and each.fft in (0.0, 1.0) for each in found.examples)
    assert not (run.folder / "work" / "fft" / SCORES).exists()


def test_config_is_enough_to_run_again(run):
    saved = parse_config(yaml.safe_load((run.folder / "config.yaml").read_text()))
    asked = run.config.model_copy(update={"run": run.config.run.model_copy(update={"dir": RUN})})
    assert saved == asked


def test_baseline_scores_fft_and_continued_fft(run):
    baseline = _json(run, "baseline.json")
    for record in (baseline, baseline["continued"]):
        assert record["method"] == "fft"
        assert record["metric"] == "exact_match"
        assert 0 <= record["validation"]["score"] <= 1
        assert record["validation"]["n"] == 40
        assert 0 <= record["test"]["score"] <= 1
        assert record["test"]["n"] == 50
    row = _winner(run)
    batch_tokens = 16 * 8
    assert row["tokens"] <= baseline["continued"]["tokens"] < row["tokens"] + batch_tokens


def test_leaderboard_has_every_trial_once_best_first(run):
    board = _json(run, "leaderboard.json")
    assert board["baseline"] == _json(run, "baseline.json")
    rows = board["trials"]
    assert len(rows) == run.config.search.trials
    assert len({row["trial_id"] for row in rows} - {LOST}) == len(rows)
    for row in rows:
        keys = {"trial_id", "config", "step", "score", "delta_fft", "status", "stopped_reason", "seconds"}
        assert keys <= row.keys()
        assert set(row["config"]) == {"ratio", "layers", "lr", "target", "init", "schedule"}
        assert row["stopped_reason"] in REASONS - {"failed", "cancelled"}
        assert row["seconds"] > 0
        if row["score"] is not None:
            assert 0 < row["step"] <= row["steps"] <= 30 or row["step"] == 0
            assert row["delta_fft"] == pytest.approx(row["score"] - board["baseline"]["validation"]["score"])
    scores = [row["score"] for row in rows if row["score"] is not None]
    assert scores == sorted(scores, reverse=True)
    assert [row["score"] for row in rows[len(scores) :]] == [None] * (len(rows) - len(scores))


def test_curves_show_every_evaluation(run):
    curves = _json(run, "curves.json")
    rows = _json(run, "leaderboard.json")["trials"]
    assert set(curves["trials"]) == {row["trial_id"] for row in rows}
    for curve in (curves["fft"], curves["continued"], *curves["trials"].values()):
        steps = [point["step"] for point in curve]
        assert steps == sorted(set(steps))
        assert steps[0] == 0
        assert all({"step", "score", "seconds", "tokens"} <= point.keys() for point in curve)
    for row in rows:
        at_best = [point for point in curves["trials"][row["trial_id"]] if point["step"] == row["step"]]
        assert row["score"] in (at_best[0]["score"], None)
        assert all("ratio" in point for point in at_best)


def test_paper_preset_is_the_first_trial_and_no_trial_is_left_running(run):
    study = optuna.load_study(study_name=STUDY_NAME, storage=open_copy(run.folder / "study.db"))
    preset = {**PAPER, "layers": paper_layers(2)[0]}
    assert study.trials[0].params == preset
    assert preset in [row["config"] for row in _json(run, "leaderboard.json")["trials"]]
    assert {trial.state for trial in study.trials} <= {TrialState.COMPLETE, TrialState.FAIL}
    told = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert len(told) >= 2
    rows = {row["trial_id"]: row for row in _json(run, "leaderboard.json")["trials"]}
    for trial in told:
        row = rows[trial.user_attrs["trial_id"]]
        assert (trial.value, trial.user_attrs["stopped_reason"]) == (row["score"], row["stopped_reason"])


def test_optunas_own_tools_have_something_to_show(run):
    study = optuna.load_study(study_name=STUDY_NAME, storage=open_copy(run.folder / "study.db"))
    assert study.best_value == _winner(run)["score"]
    importance = optuna.importance.get_param_importances(study)
    assert sum(importance.values()) == pytest.approx(1) or len({trial.value for trial in study.trials}) == 1
    assert optuna.visualization.plot_contour(study, params=["ratio", "lr"]).data


def test_verdict_agrees_with_the_baseline_and_says_so(run):
    verdict, baseline = _json(run, "verdict.json"), _json(run, "baseline.json")
    assert verdict["metric"] == "exact_match"
    assert verdict["split"] == "test"
    assert verdict["n"] == 50
    assert verdict["fft"] == pytest.approx(baseline["test"]["score"])
    assert verdict["delta"] == pytest.approx(verdict["mft"] - verdict["fft"])
    continued = baseline["continued"]["test"]["score"]
    assert verdict["delta_continued_fft"] == pytest.approx(verdict["mft"] - continued)
    for interval, delta in (("ci95", "delta"), ("ci95_continued_fft", "delta_continued_fft")):
        low, high = verdict[interval]
        assert low <= verdict[delta] <= high
    assert 0 <= verdict["p_value"] <= 1
    assert verdict["better_than_fft"] is (verdict["ci95"][0] > 0 and verdict["p_value"] < 0.05)
    assert verdict["beats_fft"] is (verdict["better_than_fft"] and verdict["beats_continued_fft"])
    assert verdict["trial_id"] == _winner(run)["trial_id"]
    assert verdict["sentence"] in run.resumed.stdout
    assert [extra["metric"] for extra in verdict["extra"]] == ["answer_logprob"]


def test_best_mask_reproduces_the_exported_model_bit_for_bit(run):
    work = run.folder / "work"
    backbone = load_file(work / "fft" / "best" / "model.safetensors")
    mask = load_mask(run.folder / "best" / "mask.safetensors")
    assert mask.backbone == fingerprint(load_model(work / "fft" / "best"))
    exported = load_file(run.folder / "best" / "model" / "model.safetensors")
    assert exported.keys() == backbone.keys()
    assert mask.masks.keys() <= backbone.keys()
    for name, weight in backbone.items():
        expected = weight * mask.masks[name] if name in mask.masks else weight
        assert torch.equal(exported[name], expected), name
    # What from_pretrained loads is what the file holds.
    loaded = dict(load_model(run.folder / "best" / "model").named_parameters())
    assert all(torch.equal(loaded[name], weight) for name, weight in exported.items() if name in loaded)


def test_best_says_where_it_comes_from(run):
    row = _winner(run)
    tree = yaml.safe_load((run.folder / "best" / "config.yaml").read_text())
    assert tree["trial_id"] == row["trial_id"]
    assert tree["mask"] == row["config"]
    assert tree["train"]["lr"] == row["config"]["lr"]
    removed = load_mask(run.folder / "best" / "mask.safetensors").settings
    assert {"ratio": removed.ratio, "layers": removed.layers, "init": removed.init}.items() <= tree["mask"].items()
    card = (run.folder / "best" / "README.md").read_text()
    assert _json(run, "verdict.json")["sentence"] in card
    assert "mft-ray export" in card


def test_report_is_there_and_progress_was_readable(run):
    report = (run.folder / "report.html").read_text()
    assert _winner(run)["trial_id"] in report
    out = run.resumed.stdout
    assert "trial 3/3 starts: ratio" in out
    assert "against FFT" in out
    for path in ("report.html", "best/mask.safetensors", "best/model"):
        assert str(run.folder / path) in out
    assert "Traceback" not in run.resumed.stderr


def test_resuming_a_finished_search_repeats_nothing(run):
    before = {path: path.stat().st_mtime_ns for path in run.folder.glob("work/*/outcome.json")}
    verdict = (run.folder / "verdict.json").stat().st_mtime_ns
    again = small_searches.run(run.folder.parent, "--resume", RUN)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (run.folder / "verdict.json").stat().st_mtime_ns == verdict
    assert len(_json(run, "leaderboard.json")["trials"]) == run.config.search.trials


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("search.space.layers=[0-1, 4-7]", "4-7"),  # found before there is a Ray; test_cli has more of these
        ("scaling.workers=16", "16 worker"),
    ],
)
def test_bad_input_is_one_paragraph_exit_code_2_and_no_run_folder(run, tmp_path, setting, message):
    config = tmp_path / "tiny.yaml"
    config.write_text((run.folder.parent / "tiny.yaml").read_text())
    result = small_searches.run(tmp_path, "--config", "tiny.yaml", "--set", "run.dir=run", "--set", setting)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == [config]


def _winner(run: Interrupted) -> dict[str, Any]:
    row: dict[str, Any] = _json(run, "leaderboard.json")["trials"][0]
    return row
