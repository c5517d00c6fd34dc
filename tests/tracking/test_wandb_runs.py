"""Weights & Biases, with its own library in offline mode: what it has kept on the disk for `wandb sync`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tracking_fixtures import (
    begin_trial,
    finished,
    wandb_records,
    wandb_steps,
    wandb_summary,
    write_baseline,
    write_outcome,
    write_progress,
)

from mft_ray.config import WandbConfig
from mft_ray.runs.folder import RunFolder
from mft_ray.tracking.snapshot import SnapshotReader

pytestmark = pytest.mark.slow  # with what `make test-all` installs
pytest.importorskip("wandb", reason="needs wandb, which `make test-all` installs")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)


def sync(folder: RunFolder) -> None:
    from mft_ray.tracking.wandb_runs import Wandb

    tracker = Wandb(WandbConfig(project="masks", artifacts=["mask", "report", "config"]), folder, "tiny")
    tracker.sync(SnapshotReader(folder, "mft").read(), final=True)
    tracker.close()


def test_a_search_is_one_group_with_its_verdict_and_files(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    sync(folder)
    found = wandb_records(folder)
    assert set(found) == {"fft", "continued_fft", "aaaa1111", "bbbb2222", "verdict"}
    runs = {name: next(record.run for record in records if record.run.run_id) for name, records in found.items()}
    assert len({run.run_group for run in runs.values()}) == 1
    assert {name: run.job_type for name, run in runs.items() if run.job_type != "trial"} == {
        "fft": "fft",
        "continued_fft": "continued_fft",
        "verdict": "verdict",
    }
    settings = {update.key: json.loads(update.value_json) for update in runs["aaaa1111"].config.update}
    assert settings | {"method": "mft", "ratio": 0.25, "layers": "1-2", "lr": 0.001} == settings
    assert wandb_steps(found["fft"]) == [0, 10, 20]
    assert wandb_summary(found["aaaa1111"])["final/score"] == pytest.approx(0.55)
    assert wandb_summary(found["bbbb2222"])["stopped_reason"] == "failed"
    assert wandb_summary(found["verdict"])["sentence"] == "Yes: better."
    [artifact] = [record.artifact for record in found["verdict"] if record.artifact.name]
    assert {content.path for content in artifact.manifest.contents} == {
        "best/mask.safetensors",
        "report.html",
        "config.yaml",
    }
    kept = b"".join(path.read_bytes() for path in (folder.work / "wandb").rglob("*") if path.is_file())
    assert b"0123456789" * 4 not in kept


def test_a_resumed_search_sends_the_rest(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_baseline(folder)
    out = begin_trial(folder, "cccc3333")
    write_progress(out, 0.4, 0.5)
    sync(folder)
    write_outcome(out, 0.4, 0.5, 0.6)
    sync(folder)
    sync(folder)
    found = wandb_records(folder)
    assert wandb_steps(found["fft"]) == [0, 10, 20]
    assert wandb_steps(found["cccc3333"]) == [0, 10, 20]
    assert len({record.run.run_id for record in found["cccc3333"] if record.run.run_id}) == 1


def test_a_training_that_goes_on_is_written_when_it_has_ended(tmp_path: Path) -> None:
    from mft_ray.tracking.wandb_runs import Wandb

    folder = RunFolder(tmp_path)
    write_baseline(folder)
    out = begin_trial(folder, "cccc3333")
    write_progress(out, 0.4, 0.5)
    reader, tracker = SnapshotReader(folder, "mft"), Wandb(WandbConfig(project="masks"), folder, "tiny")
    tracker.sync(reader.read(), final=False)
    assert set(wandb_records(folder)) == {"fft"}
    write_outcome(out, 0.4, 0.5, 0.6)
    tracker.sync(reader.read(), final=False)
    assert wandb_steps(wandb_records(folder)["cccc3333"]) == [0, 10, 20]
    tracker.close()
