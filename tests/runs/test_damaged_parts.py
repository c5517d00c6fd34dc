"""Damaged files of runs that are no finished search: of one training, a comparison, a study, a trial at work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mft_ray.config import EvaluationConfig
from mft_ray.errors import UserError
from mft_ray.evaluation.benchmark import _continued
from mft_ray.evaluation.example_scores import ExampleScores
from mft_ray.models.names import SCORES
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.repair.mend import mend_run
from mft_ray.searches.progress import TrialProgress
from mft_ray.training.job import Evaluation, Outcome
from mft_ray.utils.files import write_json

HISTORY = [Evaluation(step, score, 0.1, 10, 1.0, 0.5, 0.1, True) for step, score in ((0, 0.25), (10, 0.5))]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.work.mkdir(parents=True)
    return folder


def begun(folder: RunFolder, *stages: str) -> None:
    write_json(folder.settled, {"schema": 1, "stages": {stage: {} for stage in stages}})


def fill(folder: RunFolder, *names: str) -> None:
    for name in names:
        path = folder.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def left(folder: RunFolder) -> set[str]:
    files = (path.relative_to(folder.root) for path in folder.root.rglob("*") if path.is_file())
    return {str(path) for path in files if path.parts[:2] != ("work", "damaged")} - {"work/settled.json"}


def test_one_training_begins_anew(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    begun(folder, "data", "training")
    fill(folder, "outcome.json", "mask.safetensors", "checkpoints/step-1/x.pt", "progress.json")
    mend_run(folder)
    assert left(folder) == {"progress.json"}
    assert f"{folder.root / 'outcome.json'} is empty: that is trained again" in capsys.readouterr().out


def test_a_method_of_a_comparison_is_trained_and_scored_again(folder: RunFolder) -> None:
    begun(folder, "data", "baseline", "methods", "scores")
    outcome = Outcome("completed", HISTORY, 1, 0.5)
    for name in ("a", "b"):
        (folder.methods / name).mkdir(parents=True)
        outcome.save(folder.methods / name / "outcome.json")
    fill(folder, "methods/a/mask.safetensors", "comparison.json")
    folder.scores.mkdir()
    for name in ("a", "b"):
        write_json(folder.scores / f"{name}-test-exact_match.json", [1.0, 0.0])
    mend_run(folder)
    assert left(folder) == {"methods/b/outcome.json", "work/scores/b-test-exact_match.json"}


def test_a_study_writes_its_tasks_again(folder: RunFolder) -> None:
    begun(folder, "experiments")
    fill(folder, "experiments.json", "tasks/seed-0/math.jsonl", "work/flatness/fft.json")
    (folder.root / "tasks" / "seed-0" / "code.jsonl").write_text('{"prompt": "a"}\n{"prom')
    mend_run(folder)
    assert left(folder) == set()


def test_data_that_nothing_was_made_from_is_prepared_again(folder: RunFolder) -> None:
    begun(folder, "data")
    fill(folder, "work/data/train/state.json")
    mend_run(folder)
    assert left(folder) == set()
    begun(folder, "data", "baseline")
    fill(folder, "work/data/train/state.json")
    with pytest.raises(UserError, match="of the data that everything in this run was made from"):
        mend_run(folder)
    assert left(folder) == {"work/data/train/state.json"}


def test_fft_is_trained_again_only_before_trials(folder: RunFolder) -> None:
    names = ("work/fft/outcome.json", "work/fft/best/config.json", "work/scores/fft-validation-exact_match.json")
    begun(folder, "data", "baseline")
    fill(folder, *names)
    mend_run(folder)
    assert left(folder) == set()
    begun(folder, "data", "baseline", "trials")
    fill(folder, *names)
    with pytest.raises(UserError, match="their masks fit no other"):
        mend_run(folder)
    (folder.fft / "best" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="how FFT was trained"):
        mend_run(folder)
    assert left(folder) == set(names)


def test_a_trial_at_work_begins_anew(folder: RunFolder) -> None:
    begun(folder, "data", "baseline", "trials")
    fill(folder, "work/trials/a/config.json", "work/trials/a/checkpoints/step-1/x.pt", "work/trials/b/mask.safetensors")
    write_json(folder.trial("b") / "config.json", {"ratio": 0.1})
    fill(folder, "work/trials/c/error.json")
    write_json(folder.trial("c") / "config.json", {"ratio": 0.1})
    mend_run(folder)
    assert left(folder) == {"work/trials/c/config.json", "work/trials/c/error.json"}
    error = json.loads((folder.trial("c") / "error.json").read_text())["error"]
    assert error == "the reason is not known any more: error.json was damaged"


def test_scores_of_single_examples_go_and_the_trial_stays(
    folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    begun(folder, "data", "baseline", "trials")
    for name in ("a", "b"):
        folder.trial(name).mkdir(parents=True)
        write_json(folder.trial(name) / "config.json", {"ratio": 0.1})
        ExampleScores.of("exact_match", [0.0, 1.0]).save(folder.trial(name) / SCORES)
    half = folder.trial("a") / SCORES
    half.write_bytes(half.read_bytes()[:-1])
    mend_run(folder)
    assert left(folder) == {"work/trials/a/config.json", "work/trials/b/config.json", f"work/trials/b/{SCORES}"}
    assert "its examples are not shown beside another trial's" in capsys.readouterr().out


def test_texts_that_were_cut_off_are_generated_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    about = {"task": "sums", "model": "abc"}
    rows = [
        {"index": index, "prompt": str(index), "text": "t", "tokens": 1, "finished": True, "scores": {"a": 1.0}}
        for index in range(3)
    ]
    lines = [json.dumps(each) for each in (about, *rows)]
    file, prompts = tmp_path / "texts.jsonl", ["0", "1", "2"]

    def kept(content: str) -> list[int]:
        file.write_text(content)
        return [index for index, _ in _continued(file, about, prompts)]

    assert kept("\n".join(lines) + "\n") == [0, 1, 2]
    for cut in range(1, len(lines[-1])):
        assert kept("\n".join(lines)[:-cut]) == [0, 1]
    assert kept("\n".join([lines[0], lines[1][:40], lines[2]])) == [1]  # what a broken disk leaves
    assert kept(f"{lines[0]}\n[]\n5\n{{}}\n{lines[3]}") == [2]
    assert not caplog.records
    assert kept("") == kept(lines[0][:5]) == kept("\0" * 99) == []
    assert f"{file} is empty or half-written" in caplog.text
    with pytest.raises(UserError, match="what another model"):
        kept("\n".join([json.dumps({"task": "other"}), *lines[1:]]))


def test_tune_gets_back_what_can_be_pickled(tmp_path: Path) -> None:
    """What the session has of errors is no part of what Tune saves."""
    progress = TrialProgress(8, 30, 2, EvaluationConfig(), 0.5, 0.5, RunFolder(tmp_path), list)
    progress.give_up = lambda: None
    assert progress.__reduce__()[1] == ()
