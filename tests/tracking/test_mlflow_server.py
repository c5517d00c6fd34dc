"""MLflow, against a real server over SQLite: everything once, also where the server or the search goes away."""

from __future__ import annotations

from pathlib import Path

import pytest
from tracking_fixtures import (
    begin_trial,
    finished,
    free_port,
    mlflow_runs,
    mlflow_server,
    mlflow_steps,
    write_baseline,
    write_outcome,
    write_progress,
    write_verdict,
)

from mft_ray.config import MlflowConfig
from mft_ray.runs.folder import RunFolder
from mft_ray.tracking.snapshot import SnapshotReader

pytestmark = pytest.mark.slow  # a server takes its time to start; with what `make test-all` installs
pytest.importorskip("mlflow.server", reason="needs mlflow, which `make test-all` installs")


def test_a_search_is_sent_once_whoever_goes_away(tmp_path: Path) -> None:
    from mft_ray.tracking.mlflow_server import GROUP, Mlflow

    port, folder = free_port(), RunFolder(tmp_path / "run")
    write_baseline(folder)
    out = begin_trial(folder, "cccc3333")
    write_progress(out, 0.4)
    with mlflow_server(tmp_path / "server", port) as address:
        config = MlflowConfig(uri=address, artifacts=["mask", "report"])
        tracker = Mlflow(config, folder, "tiny")
        reader = SnapshotReader(folder, "mft")
        tracker.sync(reader.read(), final=False)
        runs = mlflow_runs(address)
        assert {name: run.info.status for name, run in runs.items()} == {"fft": "FINISHED", "cccc3333": "RUNNING"}
        assert mlflow_steps(address, runs["fft"]) == [0, 10, 20]
        assert runs["cccc3333"].data.params == {"method": "mft", "ratio": "0.25", "layers": "1-2", "lr": "0.001"}
    # The server goes away in the middle.
    write_progress(out, 0.4, 0.5)
    with pytest.raises(Exception, match=str(port)):
        tracker.sync(reader.read(), final=False)
    with mlflow_server(tmp_path / "server", port):
        tracker.sync(reader.read(), final=False)
        assert mlflow_steps(address, mlflow_runs(address)["cccc3333"]) == [0, 10]
        tracker.close()  # the search is interrupted
        assert mlflow_runs(address)["cccc3333"].info.status == "KILLED"

        # It is resumed, and an earlier process was killed before it could note what it had sent.
        noted = (folder.tracking / "mlflow.json").read_text()
        (folder.tracking / "mlflow.json").write_text(noted.replace('"step": 10', '"step": -1'))
        write_outcome(out, 0.4, 0.5, 0.6)
        finish(folder)
        for _ in range(2):
            again = Mlflow(config, folder, "tiny")
            again.sync(SnapshotReader(folder, "mft").read(), final=True)
            again.close()
        runs = mlflow_runs(address)
        assert {name: run.info.status for name, run in runs.items()} == dict.fromkeys(runs, "FINISHED")
        assert set(runs) == {"fft", "continued_fft", "cccc3333", "verdict"}
        assert mlflow_steps(address, runs["cccc3333"]) == [0, 10, 20]
        assert len(mlflow_steps(address, runs["cccc3333"], "final/score")) == 1
        assert runs["cccc3333"].data.metrics["final/score"] == pytest.approx(0.6)
        assert len({run.data.tags[GROUP] for run in runs.values()}) == 1
        assert runs["verdict"].data.metrics["test/delta_fft"] == pytest.approx(0.04)
        assert runs["verdict"].data.tags["sentence"] == "Yes: better."
    files = {path.name for path in (tmp_path / "server" / "files").rglob("*") if path.is_file()}
    assert files == {"mask.safetensors", "report.html"}


def finish(folder: RunFolder) -> None:
    write_baseline(folder, continued=True)
    write_verdict(folder, "cccc3333")
    folder.best.mkdir()
    (folder.best / "mask.safetensors").write_bytes(b"mask")
    (folder.root / "report.html").write_text("report")


def test_a_run_that_could_not_be_noted_is_found_again(tmp_path: Path) -> None:
    from mft_ray.tracking.mlflow_server import Mlflow

    folder = finished(tmp_path / "run")
    with mlflow_server(tmp_path / "server", free_port()) as address:
        snapshot = SnapshotReader(folder, "mft").read()
        first = Mlflow(MlflowConfig(uri=address, experiment="mine"), folder, "tiny")
        first.sync(snapshot, final=True)
        first.sent.runs.clear()  # as if each were sent, and its note lost
        first.sent.save(folder.tracking / "mlflow.json")
        Mlflow(MlflowConfig(uri=address, experiment="mine"), folder, "tiny").sync(snapshot, final=True)
        runs = mlflow_runs(address, "mine")
        assert mlflow_steps(address, runs["aaaa1111"]) == [0, 10, 20]
        assert runs["bbbb2222"].info.status == "FAILED"

        elsewhere = Mlflow(MlflowConfig(uri=address, experiment="other"), folder, "tiny")
        elsewhere.sync(snapshot, final=True)
        assert set(mlflow_runs(address, "other")) == set(runs)
