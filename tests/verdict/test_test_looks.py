"""The test examples are looked at once; a second look has to be asked for, and is remembered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mft_ray.errors import UserError
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.records import Verdict
from mft_ray.verdict.test_looks import kept_verdict, look, looks

FACTS: dict[str, Any] = {"metric": "exact_match", "n": 9, "fft": 0.5, "mft": 0.6, "delta": 0.1, "ci95": (-0.1, 0.3)}
VERDICT = Verdict(**FACTS, p_value=0.4, beats_fft=False, trial_id="one")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run whose trial ``one`` was judged."""
    folder = RunFolder(tmp_path / "run")
    for path in (folder.scores, folder.continued, folder.best, folder.tasks / "mft", folder.tasks / "fft"):
        path.mkdir(parents=True)
    for name in ("fft", "mft", "continued"):
        (folder.scores / f"{name}-test-exact_match.json").write_text("[1.0]")
    assert look(folder, "one") == []
    VERDICT.save(folder.verdict)
    return folder


def test_a_verdict_stays(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert kept_verdict(folder, "one", again=False) == VERDICT
    assert kept_verdict(folder, "one", again=True) == VERDICT
    assert capsys.readouterr().out == ""
    assert kept_verdict(folder, "two", again=False) == VERDICT
    said = capsys.readouterr().out
    assert "trial two is now best on validation, but the test examples were looked at for trial one" in said
    assert f"--resume {folder.root} --look-again" in said


def test_a_second_look_is_remembered_and_the_first_put_away(folder: RunFolder) -> None:
    assert kept_verdict(folder, "two", again=True) is None
    assert [each.trial_id for each in look(folder, "two")] == ["one"]
    assert [each.trial_id for each in looks(folder)] == ["one", "two"]
    assert [path.name for path in folder.scores.iterdir()] == ["fft-test-exact_match.json"]  # FFT is the same
    assert [path.name for path in folder.tasks.iterdir()] == ["fft"]
    away = folder.work / "looks" / "1"
    assert Verdict.load(away / "verdict.json") == VERDICT
    assert not folder.best.exists()
    assert {"best", "continued"} <= {path.name for path in away.iterdir()}
    # Interrupted here, and resumed: no third look.
    assert kept_verdict(folder, "two", again=True) is None
    assert len(look(folder, "two")) == 1


def test_a_verdict_from_before_looks_were_remembered_is_one(folder: RunFolder) -> None:
    folder.looks.unlink()
    assert kept_verdict(folder, "two", again=False) == VERDICT
    assert kept_verdict(folder, "two", again=True) is None
    assert [each.trial_id for each in look(folder, "two")] == ["one"]
    assert [each.trial_id for each in looks(folder)] == ["one", "two"]


def test_without_its_verdict_a_look_is_still_a_look(folder: RunFolder) -> None:
    folder.verdict.unlink()
    assert kept_verdict(folder, "one", again=False) is None  # it was interrupted and goes on
    with pytest.raises(UserError, match=r"looked at for trial one.*--look-again"):
        kept_verdict(folder, "two", again=False)
