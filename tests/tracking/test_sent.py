from __future__ import annotations

from pathlib import Path

import pytest
from tracking_fixtures import finished

from mft_ray.models.names import BEST_MODEL
from mft_ray.tracking.artifacts import digest, files_of
from mft_ray.tracking.sent import Sent, SentRun


def test_what_was_sent_is_of_one_place(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.json"
    sent = Sent.open(path, "here")
    sent.runs["fft"] = SentRun(run_id="1", step=20, ended=True)
    sent.save(path)
    assert Sent.open(path, "here") == sent
    there = Sent.open(path, "there")
    assert there.runs == {}
    assert there.token != sent.token


def test_a_damaged_note_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mlflow.json"
    path.write_text("{")
    assert Sent.open(path, "here").runs == {}
    assert "what was sent to here is sent again, as another group" in capsys.readouterr().out


def test_files_are_what_was_asked_for_and_no_model(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    (folder.best / BEST_MODEL).mkdir()
    (folder.best / BEST_MODEL / "model.safetensors").write_bytes(b"gigabytes")
    assert set(files_of(folder, ["mask", "report"])) == {"best/mask.safetensors", "report.html"}
    assert set(files_of(folder, ["config"])) == {"config.yaml"}
    (tmp_path / "report.html").unlink()
    assert files_of(folder, ["report"]) == {}


def test_a_digest_is_of_contents(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("a")
    before = digest([one, other])
    other.write_text("b")
    assert digest([one, other]) != before
