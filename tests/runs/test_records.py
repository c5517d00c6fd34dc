import json
import math

import pytest

from mft_ray.errors import UserError
from mft_ray.runs.reading import read
from mft_ray.runs.records import Baseline, Curves, Leaderboard, Verdict


def test_reads_everything_and_tolerates_unknown_keys(make_run):
    run = make_run(name="toy")
    path = run / "baseline.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"something_new": [1]}))
    records = read(run)
    assert records.name == "toy"
    assert records.baseline.validation.n == 2000
    assert records.baseline.error == 0.0072
    assert records.trials[0].config["ratio"] == 0.05
    assert records.trials[-1].score is None
    assert records.winner is records.trials[0]
    assert records.verdict is not None
    assert records.verdict.extra[0].metric == "answer_logprob"
    assert len(records.curves.trials) == 12
    assert records.config["data"]["task"] == "arithmetic"


def test_unfinished_search_has_no_verdict_and_may_lack_curves_and_config(make_run):
    run = make_run(verdict=False)
    (run / "curves.json").unlink()
    (run / "config.yaml").unlink()
    records = read(run)
    assert records.verdict is None
    assert records.curves.trials == {}
    assert records.config == {}
    assert records.name == "run"
    assert records.winner is records.trials[0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_no_score(make_run, value):
    run = make_run(trials=1)
    board = json.loads((run / "leaderboard.json").read_text())
    board["trials"][0].update(score=value, delta_fft=value)
    (run / "leaderboard.json").write_text(json.dumps(board))
    trial = read(run).trials[0]
    assert trial.score is None
    assert trial.delta_fft is None


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        read(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["baseline.json", "leaderboard.json"])
def test_needed_file_is_missing(make_run, name):
    run = make_run()
    (run / name).unlink()
    with pytest.raises(UserError, match=f"has no {name}"):
        read(run)


@pytest.mark.parametrize("name", ["baseline.json", "leaderboard.json", "verdict.json", "curves.json"])
@pytest.mark.parametrize("content", ['{"half": ', "[1, 2]", '{"n": "many", "trials": 3}'])
def test_broken_file_is_named(make_run, name, content):
    run = make_run()
    (run / name).write_text(content)
    with pytest.raises(UserError, match=name):
        read(run)


def test_broken_config_is_named(make_run):
    run = make_run()
    (run / "config.yaml").write_text("run: [")
    with pytest.raises(UserError, match=r"config\.yaml cannot be read"):
        read(run)


@pytest.mark.parametrize("name", ["baseline.json", "leaderboard.json", "verdict.json", "curves.json"])
def test_a_file_of_a_later_version_is_refused_by_name_and_number(make_run, name):
    path = make_run() / name
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 2}))
    with pytest.raises(
        UserError, match=rf"{name} has schema 2, and this version of mft_ray reads {name} up to schema 1"
    ):
        read(path.parent)


def test_what_is_written_is_what_is_read(make_run, tmp_path):
    run = make_run()
    for name, kind in (("baseline", Baseline), ("leaderboard", Leaderboard), ("verdict", Verdict), ("curves", Curves)):
        found = kind.load(run / f"{name}.json")
        found.save(tmp_path / name)
        assert kind.load(tmp_path / name) == found
        assert json.loads((tmp_path / name).read_text())["schema"] == 1
